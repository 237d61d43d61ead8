"""Preflight: everything that is wrong, all at once, each with its code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from rpam_lite.pipeline.checking import check_alone
from rpam_lite.preflight import check
from rpam_lite.preflight.findings import Finding
from rpam_lite.recipe import load_recipe
from tests.conftest import make_checkpoint

QUESTION = '{"question": "What is 1 + %d?", "answer": "%d", "level": 1}\n'


def check_pair(pair: Path) -> list[Finding]:
    recipe = {
        "version": 1,
        "name": "mine",
        "parents": {"long": "long", "short": "short"},
        "label": {"questions": "calibration.jsonl", "max_tokens": 64},
        "eval": {"questions": "evaluation.jsonl", "max_tokens": 64},
    }
    (pair / "mine.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    for name, numbers in (("calibration", range(1, 41)), ("evaluation", [100])):
        file = pair / f"{name}.jsonl"
        if not file.exists():
            file.write_text("".join(QUESTION % (n, n + 1) for n in numbers), encoding="utf-8")
    return check(load_recipe(pair / "mine.yaml"), pair / "runs" / "mine")


def codes(findings: list[Finding], level: str = "ERROR") -> set[str]:
    return {f.code for f in findings if f.level == level}


def test_a_good_pair_has_only_information(pair: Path) -> None:
    findings = check_pair(pair)
    assert {f.level for f in findings} == {"INFO"}
    assert {f.code for f in findings} == {"fp16-range", "disk", "memory"}


def test_one_folder_for_both_parents_is_refused(pair: Path) -> None:
    shutil.rmtree(pair / "short")
    (pair / "short").symlink_to(pair / "long")
    assert "pair" in codes(check_pair(pair))


@pytest.mark.parametrize(
    ("field", "value", "code"),
    [
        ("hidden_size", 128, "size"),
        ("rms_norm_eps", 1e-5, "norm-eps"),
        ("model_type", "llama", "architecture"),
        ("head_dim", 8, "head-dim"),
        ("hidden_act", "gelu", "activation"),
    ],
)
def test_other_shapes_are_errors(pair: Path, edit_json: Callable[..., None], field: str, value: Any, code: str) -> None:
    edit_json(pair / "short" / "config.json", **{field: value})
    found = [f for f in check_pair(pair) if f.code == code and f"`{field}`" in f.message]
    assert len(found) == 1
    assert repr(value) in found[0].message


def test_a_default_that_is_left_out_is_no_difference(pair: Path) -> None:
    file = pair / "short" / "config.json"
    config = json.loads(file.read_text())
    for field in ("head_dim", "hidden_act", "attention_dropout"):
        config.pop(field, None)
    file.write_text(json.dumps(config))
    assert codes(check_pair(pair)) == set()


def test_other_rope_is_an_error_in_either_spelling(pair: Path, edit_json: Callable[..., None]) -> None:
    config = pair / "short" / "config.json"
    edit_json(config, rope_parameters=None, rope_theta=10000.0)
    assert codes(check_pair(pair)) == set()
    edit_json(config, rope_theta=1e6)
    assert codes(check_pair(pair)) == {"rope"}


@pytest.mark.parametrize(
    ("file", "field", "value", "code"),
    [
        ("config.json", "max_position_embeddings", 4096, "context"),
        ("config.json", "eos_token_id", 3, "special-tokens"),
        ("generation_config.json", "temperature", 0.1, "generation-config"),
        ("tokenizer_config.json", "chat_template", "{{ messages }}", "template"),
    ],
)
def test_what_the_donor_decides_is_a_warning_that_names_the_key(
    pair: Path, edit_json: Callable[..., None], file: str, field: str, value: Any, code: str
) -> None:
    edit_json(pair / "short" / file, **{field: value})
    findings = check_pair(pair)
    assert codes(findings) == set()
    assert codes(findings, "WARNING") == {code}
    found = next(f for f in findings if f.code == code)
    assert found.effect.startswith("keeps")
    assert found.key == "merge.donor"


def test_tensors_that_the_config_does_not_promise_are_errors(pair: Path, tokenizer: Any) -> None:
    shutil.rmtree(pair / "short")
    make_checkpoint(pair / "short", 2, tokenizer, tie_word_embeddings=False, intermediate_size=256)
    config = json.loads((pair / "long" / "config.json").read_text())
    (pair / "short" / "config.json").write_text(json.dumps(config))
    messages = " ".join(f.message for f in check_pair(pair) if f.code == "tensors")
    assert "holds lm_head.weight, which qwen2 does not have" in messages
    assert "down_proj.weight has shape (64, 256), its config says (64, 128)" in messages


@pytest.mark.parametrize(("tied", "level"), [("long", "ERROR"), ("short", "WARNING")])
def test_a_tied_head_beside_a_separate_one(pair: Path, tokenizer: Any, tied: str, level: str) -> None:
    """The donor is long."""
    separate = "short" if tied == "long" else "long"
    shutil.rmtree(pair / separate)
    make_checkpoint(pair / separate, 2, tokenizer, tie_word_embeddings=False)
    assert {f.level for f in check_pair(pair) if f.code == "tied-head"} == {level}


def test_the_same_id_with_another_string_is_told_with_what_becomes_of_it(pair: Path) -> None:
    file = pair / "short" / "tokenizer.json"
    raw = json.loads(file.read_text(encoding="utf-8"))
    raw["added_tokens"][-1]["content"] = "<|box_end|>"
    file.write_text(json.dumps(raw), encoding="utf-8")
    found = [f for f in check_pair(pair) if f.code == "vocabulary"]
    assert [f.level for f in found] == ["WARNING"]
    assert "'</think>' and '<|box_end|>'" in found[0].message
    assert "1 tokens of the donor alone keep its row, 1 tokens of the second alone are dropped" in found[0].effect


def test_vocabularies_of_two_families_are_an_error(pair: Path) -> None:
    file = pair / "short" / "tokenizer.json"
    raw = json.loads(file.read_text(encoding="utf-8"))
    raw["model"]["vocab"] = {f"other{i}": i for i in raw["model"]["vocab"].values()}
    file.write_text(json.dumps(raw), encoding="utf-8")
    assert "vocabulary" in codes(check_pair(pair))


@pytest.mark.parametrize("how", ["config", "tensors", "types"])
def test_quantized_leftovers_are_errors(pair: Path, edit_json: Callable[..., None], how: str) -> None:
    file = pair / "short" / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.0.mlp.up_proj.weight"
    if how == "config":
        edit_json(pair / "short" / "config.json", quantization_config={"quant_method": "gptq"})
    elif how == "tensors":
        save_file(
            tensors | {f"{name}.absmax": torch.ones(3), f"{name}.quant_state.bitsandbytes__nf4": torch.ones(3)}, file
        )
    else:
        save_file(tensors | {name: torch.ones(4096, 1, dtype=torch.uint8)}, file)
    assert codes(check_pair(pair)) & {"quantized", "dtype"}


def test_a_template_that_opens_the_think_block_is_told(pair: Path, edit_json: Callable[..., None]) -> None:
    for parent in ("long", "short"):
        edit_json(
            pair / parent / "tokenizer_config.json",
            chat_template="{{ messages[0].content }}{% if add_generation_prompt %}<think>\n{% endif %}",
        )
    assert "think-prefill" in codes(check_pair(pair), "INFO")


def test_a_template_that_fails_is_an_error(pair: Path, edit_json: Callable[..., None]) -> None:
    for parent in ("long", "short"):
        edit_json(pair / parent / "tokenizer_config.json", chat_template="{{ raise_exception('no system turn') }}")
    messages = [f.message for f in check_pair(pair) if f.code == "template"]
    assert any("no system turn" in m for m in messages)


@pytest.mark.parametrize("template", ["{{ 1 / 0 }}", "{% for i in range(10**9) %}{% endfor %}", "{% if %}"])
def test_whatever_a_template_does_is_a_finding(pair: Path, edit_json: Callable[..., None], template: str) -> None:
    for parent in ("long", "short"):
        edit_json(pair / parent / "tokenizer_config.json", chat_template=template)
    assert codes(check_pair(pair)) == {"template"}


def test_methods_that_fit_nothing_need_no_memory(pair: Path) -> None:
    check_pair(pair)
    raw = yaml.safe_load((pair / "mine.yaml").read_text())
    raw |= {"memory": {"host": "1MB"}, "merge": {"method": "scalar"}}
    (pair / "mine.yaml").write_text(yaml.safe_dump(raw))
    assert codes(check(load_recipe(pair / "mine.yaml"), pair / "runs")) == set()


def test_the_gravest_comes_first_and_the_command_says_it_as_json(
    pair: Path, edit_json: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    check_pair(pair)
    recipe = load_recipe(pair / "mine.yaml")
    assert check_alone(recipe, pair / "runs", as_json=True) == 0
    assert json.loads(capsys.readouterr().out)["worst"] == "INFO"
    edit_json(pair / "short" / "config.json", max_position_embeddings=4096)
    assert check_alone(recipe, pair / "runs", as_json=False) == 3
    assert "WARNING [context]" in capsys.readouterr().out.splitlines()[0]
    edit_json(pair / "short" / "config.json", rms_norm_eps=1.0)
    assert check_alone(recipe, pair / "runs", as_json=True) == 1
    told = json.loads(capsys.readouterr().out)
    assert [f["level"] for f in told["findings"]] == sorted(
        (f["level"] for f in told["findings"]), key=["ERROR", "WARNING", "INFO"].index
    )
    assert not (pair / "runs").exists()


@pytest.mark.parametrize(
    ("merge", "says"),
    [
        ({"method": "dare-ties"}, "unknown; known are"),
        ({"method": "ties"}, "there is no `parents.base`"),
        ({"method": "scalar", "options": {"lambda": 0.3}}, "scalar has no such option; it has weight"),
        ({"options": {"weight": 0.3}}, "are for other methods"),
    ],
)
def test_a_method_that_cannot_be_is_said_before_any_work(pair: Path, merge: dict[str, Any], says: str) -> None:
    check_pair(pair)
    raw = yaml.safe_load((pair / "mine.yaml").read_text()) | {"merge": merge}
    (pair / "mine.yaml").write_text(yaml.safe_dump(raw))
    found = [f for f in check(load_recipe(pair / "mine.yaml"), pair / "runs") if f.level == "ERROR"]
    assert [f.code for f in found] == ["method"]
    assert says in found[0].message


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
    assert codes(findings) >= {"size", "tensors", "tokenizer", "questions"}
    assert codes(findings, "WARNING") == {"context", "max-tokens"}


def test_few_questions_and_repeated_ones_are_warned_of(pair: Path) -> None:
    (pair / "calibration.jsonl").write_text(3 * QUESTION % (1, 2, 1, 2, 2, 3), encoding="utf-8")
    found = {f.code: f.message for f in check_pair(pair) if f.level == "WARNING"}
    assert set(found) == {"few-questions", "repeated"}
    assert "holds 1 of its 3 questions more than once" in found["repeated"]
    assert "2 questions are few to choose on" in found["few-questions"]


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
        ("config.json", '{"model_type": "qwen2", "hidden_size": "64"}', "its config can't be used"),
        ("config.json", '{"model_type": "qwen2", "torch_dtype": "float99"}', "its config can't be used"),
        ("tokenizer.json", "{}", "has no `model.vocab`"),
        ("tokenizer.json", '{"model": {"vocab": {"a": 0}}, "added_tokens": null}', "`added_tokens` is no list"),
        ("generation_config.json", "[" * 100_000, "is not valid JSON"),
        ("model.safetensors.index.json", '{"weight_map": []}', "has no `weight_map`"),
    ],
)
def test_odd_files_are_findings_too(pair: Path, file: str, content: str, says: str) -> None:
    for parent in ("long", "short"):
        (pair / parent / file).write_text(content, encoding="utf-8")
    messages = [f.message for f in check_pair(pair) if f.level == "ERROR"]
    assert any(says in m and str(pair / "long") in m for m in messages), messages
    assert len(messages) == len(set(messages))
