"""Preflight: everything that is wrong, all at once, each with its code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from rpam_lite.preflight import Finding, check
from rpam_lite.recipe import load_recipe
from tests.conftest import make_checkpoint

QUESTION = '{"question": "What is 1 + %d?", "answer": "%d", "level": 1}\n'


def check_pair(pair: Path) -> list[Finding]:
    recipe = {
        "version": 1,
        "name": "mine",
        "parents": {"long": "long", "short": "short"},
        "label": {"questions": "calibration.jsonl"},
        "eval": {"questions": "evaluation.jsonl"},
    }
    (pair / "mine.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    for name, n in (("calibration", 1), ("evaluation", 2)):
        file = pair / f"{name}.jsonl"
        if not file.exists():
            file.write_text(QUESTION % (n, n + 1), encoding="utf-8")
    return check(load_recipe(pair / "mine.yaml"), pair / "runs" / "mine")


def codes(findings: list[Finding], level: str = "ERROR") -> set[str]:
    return {f.code for f in findings if f.level == level}


def test_a_good_pair_has_no_findings(pair: Path) -> None:
    assert check_pair(pair) == []


@pytest.mark.parametrize(
    ("field", "value"),
    [("hidden_size", 128), ("num_hidden_layers", 3), ("rms_norm_eps", 1e-5), ("model_type", "llama"), ("head_dim", 8)],
)
def test_other_shapes_are_errors(pair: Path, edit_json: Callable[..., None], field: str, value: Any) -> None:
    edit_json(pair / "short" / "config.json", **{field: value})
    found = [f for f in check_pair(pair) if f.code == "shape"]
    assert len(found) == 1
    assert f"`{field}`" in found[0].message
    assert repr(value) in found[0].message


def test_other_rope_is_an_error_in_either_spelling(pair: Path, edit_json: Callable[..., None]) -> None:
    config = pair / "short" / "config.json"
    edit_json(config, rope_parameters=None, rope_theta=10000.0)
    assert codes(check_pair(pair)) == set()
    edit_json(config, rope_theta=1e6)
    assert codes(check_pair(pair)) == {"rope"}


def test_fields_of_the_donor_are_warnings(pair: Path, edit_json: Callable[..., None]) -> None:
    edit_json(pair / "short" / "config.json", max_position_embeddings=4096)
    findings = check_pair(pair)
    assert codes(findings) == set()
    assert codes(findings, "WARNING") == {"config"}


def test_tensors_of_other_shapes_and_lone_tensors_are_errors(pair: Path, tokenizer: Any) -> None:
    shutil.rmtree(pair / "short")
    make_checkpoint(pair / "short", 2, tokenizer, tie_word_embeddings=False, intermediate_size=256)
    messages = " ".join(f.message for f in check_pair(pair) if f.level == "ERROR")
    assert "only one of them has lm_head.weight" in messages
    assert "down_proj.weight has shape (64, 128) and (64, 256)" in messages
    assert "`tie_word_embeddings`" in messages


def test_the_same_id_with_another_string_is_an_error(pair: Path) -> None:
    file = pair / "short" / "tokenizer.json"
    raw = json.loads(file.read_text(encoding="utf-8"))
    raw["added_tokens"][-1]["content"] = "<|box_end|>"
    file.write_text(json.dumps(raw), encoding="utf-8")
    found = [f for f in check_pair(pair) if f.code == "vocabulary"]
    assert len(found) == 1
    assert "'</think>' and '<|box_end|>'" in found[0].message


def test_a_pair_without_a_template_cannot_be_asked(pair: Path, edit_json: Callable[..., None]) -> None:
    for parent in ("long", "short"):
        edit_json(pair / parent / "tokenizer_config.json", chat_template=None)
    assert codes(check_pair(pair)) == {"template"}


def test_calibrating_on_what_is_measured_is_an_error(pair: Path) -> None:
    (pair / "calibration.jsonl").write_text(QUESTION % (2, 3), encoding="utf-8")
    (pair / "evaluation.jsonl").write_text((QUESTION % (2, 3)).replace("What", "what "), encoding="utf-8")
    assert codes(check_pair(pair)) == {"overlap"}


def test_all_findings_come_at_once(pair: Path, edit_json: Callable[..., None]) -> None:
    edit_json(pair / "short" / "config.json", hidden_size=128, max_position_embeddings=9)
    (pair / "short" / "tokenizer.json").write_text("{", encoding="utf-8")
    (pair / "calibration.jsonl").write_text("{", encoding="utf-8")
    findings = check_pair(pair)
    assert codes(findings) == {"shape", "tokenizer", "questions"}
    assert codes(findings, "WARNING") == {"config"}


def test_missing_and_truncated_checkpoints_are_named(pair: Path) -> None:
    shutil.rmtree(pair / "short")
    weights = pair / "long" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    messages = [f.message for f in check_pair(pair) if f.code == "checkpoint"]
    assert len(messages) == 2
    assert any("no such checkpoint folder" in m for m in messages)
    assert any("no whole safetensors file" in m for m in messages)


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("config.json", "[]", "is a JSON list, not an object"),
        ("config.json", '{"model_type": "qwen2"}', "`num_hidden_layers` is None"),
        ("config.json", '{"model_type": "mamba"}', "'mamba' can't be exported"),
        ("tokenizer.json", "{}", "has no `model.vocab`"),
        ("model.safetensors.index.json", '{"weight_map": []}', "has no `weight_map`"),
    ],
)
def test_odd_files_are_findings_too(pair: Path, file: str, content: str, says: str) -> None:
    for parent in ("long", "short"):
        (pair / parent / file).write_text(content, encoding="utf-8")
    messages = [f.message for f in check_pair(pair) if f.level == "ERROR"]
    assert any(says in m and str(pair / "long") in m for m in messages), messages
    assert len(messages) == len(set(messages))
