"""Verification finds what is wrong with a merged checkpoint, wherever it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from rpam_lite.checkpoint.pair import open_pair
from rpam_lite.checkpoint.write import write_checkpoint
from rpam_lite.errors import RpamError
from rpam_lite.merge import verify as verifying
from rpam_lite.merge.apply import MergedSource
from rpam_lite.merge.verify import verify
from tests.rpam_lite import models

NAME = "model.layers.1.mlp.up_proj.weight"


def source_of(pair: Path, weight: float = 0.3, dtype: torch.dtype = torch.float16) -> MergedSource:
    long, short, _ = open_pair(pair / "long", pair / "short", None, "long")
    return MergedSource(long, short, lambda name: weight, dtype)


def config_of(pair: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((pair / "long" / "config.json").read_text())
    return config


@pytest.fixture
def merged(pair: Path, tmp_path: Path) -> Path:
    source = source_of(pair)
    write_checkpoint(source, source.long.config, pair / "long", tmp_path / "merged", torch.float16, {})
    return tmp_path / "merged"


def damage(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def test_a_good_merge_passes_and_every_value_of_a_small_one_is_compared(pair: Path, merged: Path) -> None:
    found = verify(merged, source_of(pair), config_of(pair), seed=1)
    assert {check.name: check.compared for check in found} == {
        name: tensor.numel() for name, tensor in load_file(merged / "model.safetensors").items()
    }


def test_one_wrong_value_is_found(pair: Path, merged: Path) -> None:
    damage(merged, lambda t: t[NAME][5, 7].add_(0.01))
    with pytest.raises(RpamError, match=rf"{NAME}, rows 0 to 128: is off by up to 0\.01"):
        verify(merged, source_of(pair), config_of(pair), seed=1)


def test_first_and_last_chunk_are_always_compared(pair: Path, merged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifying, "CHUNK_VALUES", 256)
    damage(merged, lambda t: t[NAME][-1, -1].add_(1))
    with pytest.raises(RpamError, match="rows 124 to 128"):
        verify(merged, source_of(pair), config_of(pair), seed=1, chunks=2)
    found = verify_some(pair, monkeypatch)
    assert found < 1


def verify_some(pair: Path, monkeypatch: pytest.MonkeyPatch) -> float:
    """Share of the values that four chunks of 256 are."""
    source = source_of(pair)
    write_checkpoint(source, source.long.config, pair / "long", pair / "again", torch.float16, {})
    found = verify(pair / "again", source, config_of(pair), seed=1)
    return sum(c.compared for c in found) / sum(source.get(c.name).numel() for c in found)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.pop(NAME), f"{NAME} is missing, or is one too many"),
        (lambda t: t.__setitem__("more", torch.ones(2)), "more is missing, or is one too many"),
        (lambda t: t.__setitem__(NAME, t[NAME][:5].clone()), r"of shape \(5, 64\), and must be"),
        (lambda t: t.__setitem__(NAME, t[NAME].float()), "is torch.float32 of shape"),
        (lambda t: t[NAME][0, 0].fill_(float("nan")), "holds inf or NaN; set"),
    ],
)
def test_what_is_missing_or_of_another_form_is_named(pair: Path, merged: Path, change: Any, says: str) -> None:
    damage(merged, change)
    with pytest.raises(RpamError, match=says):
        verify(merged, source_of(pair), config_of(pair), seed=1)


def test_a_config_that_is_not_the_donors_is_named(pair: Path, merged: Path, edit_json: Any) -> None:
    edit_json(merged / "config.json", rms_norm_eps=0.1)
    with pytest.raises(RpamError, match=r"`rms_norm_eps` is 0\.1, the donor has 1e-06"):
        verify(merged, source_of(pair), config_of(pair), seed=1)


def test_a_config_that_transformers_cannot_use_is_named(pair: Path, merged: Path, edit_json: Any) -> None:
    for folder in (merged, pair / "long"):
        edit_json(folder / "config.json", num_hidden_layers=1)
    with pytest.raises(RpamError, match="transformers can't load it"):
        verify(merged, source_of(pair), config_of(pair), seed=1)


def test_a_tied_head_must_be_the_embedding(pair: Path, tmp_path: Path) -> None:
    """Some checkpoints store a tied head all the same; other lambdas for both would part them."""
    for parent in ("long", "short"):
        damage(pair / parent, lambda t: t.__setitem__("lm_head.weight", t["model.embed_tokens.weight"].clone()))
    long, short, _ = open_pair(pair / "long", pair / "short", None, "long")
    for weight, good in ((0.3, True), (0.4, False)):
        source = MergedSource(long, short, lambda name, w=weight: w if "head" in name else 0.3, torch.float16)  # type: ignore[misc]
        folder = tmp_path / str(weight)
        write_checkpoint(source, long.config, pair / "long", folder, torch.float16, {})
        if good:
            verify(folder, source, config_of(pair), seed=1)
        else:
            with pytest.raises(RpamError, match=r"ties the head to the embedding, and lm_head\.weight differs"):
                verify(folder, source, config_of(pair), seed=1)


def test_what_is_flushed_to_zero_is_counted(pair: Path, tmp_path: Path) -> None:
    for parent in ("long", "short"):
        damage(pair / parent, lambda t: t[NAME][:64].mul_(1e-9))
    source = source_of(pair)
    write_checkpoint(source, source.long.config, pair / "long", tmp_path / "merged", torch.float16, {})
    flushed = {check.name: check.flushed for check in verify(tmp_path / "merged", source, config_of(pair), seed=1)}
    assert flushed.pop(NAME) == pytest.approx(0.5, abs=0.02)
    assert max(flushed.values()) < 0.01


def test_the_record_of_its_origin(pair: Path, merged: Path) -> None:
    assert json.loads((merged / "config.json").read_text())["rpam_lite"] == {}


def test_a_parent_that_is_an_adapter_is_verified_too(tmp_path: Path) -> None:
    """1,025 = 4 * 256 + 1 rows: a product of one row alone would differ in its last bits from one of many."""
    config = models.config_of("llama", intermediate_size=1025)
    base = models.random_model(config, 1)
    base.save_pretrained(tmp_path / "base")
    torch.manual_seed(3)
    tuned = get_peft_model(base, LoraConfig(r=16, target_modules=["up_proj", "q_proj"], init_lora_weights=False))
    tuned.save_pretrained(tmp_path / "adapter")
    for folder in ("base", "adapter"):
        (tmp_path / folder / "tokenizer.json").write_text(json.dumps({"model": {"type": "BPE", "vocab": {"a": 0}}}))
    long, short, donor = open_pair(tmp_path / "adapter", tmp_path / "base", tmp_path / "base", "short")
    for dtype, threads in ((torch.float32, 1), (torch.float16, 2)):
        torch.set_num_threads(threads)
        source = MergedSource(long, short, lambda name: 0.3, dtype)
        folder = tmp_path / str(threads)
        write_checkpoint(source, donor.config, donor.folder, folder, dtype, {}, chunk_values=32 * 341)
        torch.set_num_threads(2)
        found = verify(folder, source, donor.config, seed=1)
        assert len(found) == 3 * 9 + 3  # every layer's, the embedding, the last norm and the head
        assert all(check.compared == prod(source.shape(check.name)) for check in found)
