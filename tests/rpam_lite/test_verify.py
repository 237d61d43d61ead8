"""Verification finds what is wrong with a merged checkpoint, wherever it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rpam_lite.checkpoint.pair import open_pair
from rpam_lite.checkpoint.write import write_checkpoint
from rpam_lite.errors import RpamError
from rpam_lite.merge import verify as verifying
from rpam_lite.merge.apply import MergedSource
from rpam_lite.merge.verify import verify

NAME = "model.layers.1.mlp.up_proj.weight"


def source_of(pair: Path, weight: float = 0.3, dtype: torch.dtype = torch.float16) -> MergedSource:
    long, short, _ = open_pair(pair / "long", pair / "short", None, "long")
    return MergedSource(long, short, lambda name: weight, dtype)


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
    found = verify(merged, source_of(pair), seed=1)
    assert {check.name: check.compared for check in found} == {
        name: tensor.numel() for name, tensor in load_file(merged / "model.safetensors").items()
    }


def test_one_wrong_value_is_found(pair: Path, merged: Path) -> None:
    damage(merged, lambda t: t[NAME][5, 7].add_(0.01))
    with pytest.raises(RpamError, match=rf"{NAME}, rows 0 to 128: is off by up to 0\.01"):
        verify(merged, source_of(pair), seed=1)


def test_first_and_last_chunk_are_always_compared(pair: Path, merged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifying, "CHUNK_VALUES", 256)
    damage(merged, lambda t: t[NAME][-1, -1].add_(1))
    with pytest.raises(RpamError, match="rows 124 to 128"):
        verify(merged, source_of(pair), seed=1, chunks=2)
    found = verify_some(pair, monkeypatch)
    assert found < 1


def verify_some(pair: Path, monkeypatch: pytest.MonkeyPatch) -> float:
    """Share of the values that four chunks of 256 are."""
    source = source_of(pair)
    write_checkpoint(source, source.long.config, pair / "long", pair / "again", torch.float16, {})
    found = verify(pair / "again", source, seed=1)
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
        verify(merged, source_of(pair), seed=1)


def test_a_config_that_is_not_the_weights_shows_in_the_logits(pair: Path, merged: Path, edit_json: Any) -> None:
    edit_json(merged / "config.json", rms_norm_eps=0.1)
    verify(merged, source_of(pair), seed=1)  # the reference has the same config
    edit_json(merged / "config.json", num_hidden_layers=1)
    with pytest.raises(RpamError, match="transformers can't load it"):
        verify(merged, source_of(pair), seed=1)


def test_a_tied_head_must_be_the_embedding(pair: Path, merged: Path) -> None:
    damage(merged, lambda t: t.__setitem__("lm_head.weight", t["model.embed_tokens.weight"] + 1))
    with pytest.raises(RpamError, match=r"lm_head\.weight is missing, or is one too many"):
        verify(merged, source_of(pair), seed=1)


def test_what_is_flushed_to_zero_is_counted(pair: Path, tmp_path: Path) -> None:
    for parent in ("long", "short"):
        damage(pair / parent, lambda t: t[NAME][:64].mul_(1e-9))
    source = source_of(pair)
    write_checkpoint(source, source.long.config, pair / "long", tmp_path / "merged", torch.float16, {})
    flushed = {check.name: check.flushed for check in verify(tmp_path / "merged", source, seed=1)}
    assert flushed.pop(NAME) == pytest.approx(0.5, abs=0.02)
    assert max(flushed.values()) < 0.01


def test_the_record_of_its_origin(pair: Path, merged: Path) -> None:
    assert json.loads((merged / "config.json").read_text())["rpam_lite"] == {}
