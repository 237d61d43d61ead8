"""Reading and writing checkpoints: exact bytes, and one clear error for each kind of damage."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from rpam_lite.checkpoint.arithmetic import interpolate
from rpam_lite.checkpoint.files import append_rows, read_rows, save_state, whole_file, whole_folder
from rpam_lite.checkpoint.source import CheckpointSource
from rpam_lite.checkpoint.write import write_checkpoint
from rpam_lite.errors import RpamError
from rpam_lite.fit.coefficients import Coefficients, load, save, scalar
from rpam_lite.fit.groups import group_of
from rpam_lite.merge.apply import MergedSource


def write_merge(
    pair: Path, folder: Path, coefficient: Callable[[str], float], dtype: torch.dtype, **options: Any
) -> None:
    long, short = CheckpointSource(pair / "long"), CheckpointSource(pair / "short")
    source = MergedSource(long, short, coefficient, dtype)
    write_checkpoint(source, long.config, pair / "long", folder, dtype, {"method": "test"}, **options)


def test_the_merge_is_the_formula_rounded_once(pair: Path, tmp_path: Path) -> None:
    weights = {"model.norm.weight": 0.9}
    write_merge(pair, tmp_path / "merged", lambda name: weights.get(name, 0.3), torch.float16)
    long, short = (load_file(pair / p / "model.safetensors") for p in ("long", "short"))
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    assert merged.keys() == long.keys()
    for name, tensor in merged.items():
        s, d = short[name].double(), long[name].double() - short[name].double()
        expected = s + weights.get(name, 0.3) * d
        assert tensor.dtype == torch.float16
        # fp32 arithmetic and one rounding: at most half a step of float16, and a hair.
        step = torch.finfo(torch.float16).eps * expected.abs().clamp_min(2**-14)
        assert ((tensor.double() - expected).abs() <= 0.501 * step).all(), name


@pytest.mark.parametrize(("weight", "parent"), [(0.0, "short"), (1.0, "long")])
def test_the_ends_are_the_parents(pair: Path, tmp_path: Path, weight: float, parent: str) -> None:
    write_merge(pair, tmp_path / "merged", scalar(weight).of, torch.bfloat16)
    merged, original = (load_file(f / "model.safetensors") for f in (tmp_path / "merged", pair / parent))
    assert all(torch.equal(merged[name], original[name]) for name in original)


def test_transformers_loads_the_merge(pair: Path, tmp_path: Path) -> None:
    write_merge(pair, tmp_path / "merged", scalar(0.5).of, torch.float16)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    logits = model(torch.tensor([[1, 2, 3]])).logits
    assert torch.isfinite(logits).all()
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "merged" / name).read_bytes() == (pair / "long" / name).read_bytes()


def test_same_inputs_same_bytes(pair: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_merge(pair, tmp_path / name, scalar(0.37).of, torch.float16)
    one, two = (sorted((tmp_path / name).iterdir()) for name in ("one", "two"))
    assert [f.read_bytes() for f in one] == [f.read_bytes() for f in two]


@given(st.floats(0, 1))
def test_a_small_step_of_lambda_is_kept(weight: float) -> None:
    short, long = torch.zeros(1, dtype=torch.bfloat16), torch.ones(1, dtype=torch.bfloat16)
    assert interpolate(short, long, weight + 0.001) > interpolate(short, long, weight)


def test_overflow_in_float16_names_the_tensor_and_the_cure(pair: Path, tmp_path: Path) -> None:
    with pytest.raises(RpamError, match=r"model\.\S+: rows \d+ to \d+ hold inf or NaN as float16.*bfloat16"):
        write_merge(pair, tmp_path / "merged", lambda name: 1e9, torch.float16)
    assert not (tmp_path / "merged").exists()


def test_damaged_checkpoints_are_named(pair: Path) -> None:
    weights = pair / "long" / "model.safetensors"
    whole = weights.read_bytes()
    for content in (whole[:-1000], whole[:4], b"", b"\xff" * 100, whole + b"more"):
        weights.write_bytes(content)
        with pytest.raises(RpamError, match=r"model\.safetensors: is no whole safetensors file"):
            CheckpointSource(pair / "long")
    weights.unlink()
    with pytest.raises(RpamError, match="has neither"):
        CheckpointSource(pair / "long")
    (pair / "long" / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(RpamError, match="pickle"):
        CheckpointSource(pair / "long")
    (pair / "long" / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(RpamError, match="not valid JSON"):
        CheckpointSource(pair / "long")
    with pytest.raises(RpamError, match="no such checkpoint folder"):
        CheckpointSource(pair / "elsewhere")


def test_sharded_checkpoints_are_read(pair: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(pair / "long", dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="100KB")
    sharded, single = CheckpointSource(tmp_path / "sharded"), CheckpointSource(pair / "long")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    assert sharded.names() == single.names()
    assert all(torch.equal(sharded.get(n), single.get(n)) for n in single.names())
    next((tmp_path / "sharded").glob("*.safetensors")).unlink()
    with pytest.raises(RpamError, match="named by the shard index and missing"):
        CheckpointSource(tmp_path / "sharded")


def test_groups_by_granularity() -> None:
    name = "model.layers.12.self_attn.q_proj.bias"
    assert group_of(name, "layer") == "layers.12"
    assert group_of(name, "matrix") == group_of(name.replace("bias", "weight"), "matrix")
    assert group_of(name, "matrix") == "layers.12.self_attn.q_proj"
    assert group_of("model.embed_tokens.weight", "layer") == "embed_tokens"
    assert group_of("model.norm.weight", "matrix") == "norm"
    assert group_of("lm_head.weight", "layer") == "lm_head"
    for other in ("model.layers.3.linear_attn.A_log", "gpt.layers.3.mlp.up.weight"):
        assert group_of(other, "layer") == "layers.3"
    assert group_of("model.layers.3.linear_attn.A_log", "matrix") == "layers.3.linear_attn.A_log"


def test_coefficients_round_trip_and_refuse_strangers(tmp_path: Path) -> None:
    file = tmp_path / "coefficients.json"
    save(Coefficients(granularity="layer", values={"norm": 0.25}), file)
    assert load(file).of("model.norm.weight") == 0.25
    with pytest.raises(RpamError, match=r"no value for 'layers\.3'"):
        load(file).of("model.layers.3.mlp.up_proj.weight")
    file.write_text('{"granularity": "layer", "values": {"norm": "much"}}', encoding="utf-8")
    with pytest.raises(RpamError, match="got 'much'"):
        load(file)


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    def fail(part: Path) -> None:
        (part / "x" if part.is_dir() else part).write_text("half", encoding="utf-8")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), whole_file(tmp_path / "file") as part:
        fail(part)
    with pytest.raises(ZeroDivisionError), whole_folder(tmp_path / "folder") as part:
        fail(part)
    assert not list(tmp_path.iterdir())


def test_appended_rows_survive_an_interruption(tmp_path: Path) -> None:
    file = tmp_path / "new" / "rows.jsonl"

    def rows(keys: str) -> Iterator[dict[str, Any]]:
        for key in keys:
            if key == "!":
                raise KeyboardInterrupt
            yield {"key": key, "text": f"ä {key}"}

    assert read_rows(file) == {}
    with pytest.raises(KeyboardInterrupt):
        append_rows(file, rows("ab!c"))
    assert list(read_rows(file)) == ["a", "b"]
    # A line that was cut off is dropped, and the next one does not stick to it.
    file.write_bytes(file.read_bytes()[:-4])
    append_rows(file, rows("c"))
    assert read_rows(file) == {"a": {"key": "a", "text": "ä a"}, "c": {"key": "c", "text": "ä c"}}


def test_torchs_word_for_a_full_disk_becomes_the_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(value: object, path: Path) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="can't be written whole") as caught:
        save_state({"a": 1}, tmp_path / "state.pt")
    assert caught.value.filename == str(tmp_path / "state.pt")
    assert not list(tmp_path.iterdir())
