"""The merge as a mergekit recipe; run through mergekit itself where RPAM_MERGEKIT names its mergekit-yaml."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from export.mergekit import mergekit_config
from rpam_lite.checkpoint.pair import open_pair
from rpam_lite.errors import RpamError
from rpam_lite.merge.apply import MergedSource
from rpam_lite.streaming.skeleton import Skeleton
from tests.conftest import make_checkpoint


def lambda_of(name: str) -> float:
    """Another one for every tensor."""
    return (sum(name.encode()) % 97) / 96


def config_of(pair: Path, of: Callable[[str], Any] = lambda_of, donor: str = "long") -> dict[str, Any]:
    skeleton = Skeleton(pair / donor)
    layers = [[skeleton.checkpoint_name(i, t) for t in skeleton.layer_tensors(i)] for i in range(skeleton.layers)]
    outside = list(dict.fromkeys([skeleton.embedding, *skeleton.tail, skeleton.head]))
    return mergekit_config(pair / "long", pair / "short", donor, layers, outside, of, "bfloat16")


def test_every_tensor_has_both_weights_and_the_donor_comes_first(pair: Path) -> None:
    config = yaml.safe_load(yaml.safe_dump(config_of(pair, donor="short")))
    assert [len(s["sources"]) for s in config["slices"]] == [2, 2]
    first, second = config["slices"][1]["sources"]
    assert first["model"] == str(pair / "short")
    assert first["layer_range"] == [1, 2]
    for short, long in zip(first["parameters"]["weight"], second["parameters"]["weight"], strict=True):
        assert short["filter"] == long["filter"]
        assert long["value"] == lambda_of(long["filter"])
        assert short["value"] + long["value"] == pytest.approx(1)
    told = {w["filter"] for s in config["slices"] for w in s["sources"][0]["parameters"]["weight"]}
    assert told == set(load_file(pair / "long" / "model.safetensors"))


def test_rows_cannot_be_told(pair: Path) -> None:
    with pytest.raises(RpamError, match="has 64 coefficients and mergekit knows one a tensor"):
        config_of(pair, lambda name: torch.rand(64))


@pytest.mark.parametrize("tied", [True, False])
def test_mergekit_makes_the_same_merge(tmp_path: Path, tokenizer: Any, tied: bool) -> None:
    """But for one rounding step of bfloat16: mergekit sums two products, we add one."""
    program = os.environ.get("RPAM_MERGEKIT")
    if program is None:
        pytest.skip("RPAM_MERGEKIT names no mergekit-yaml")
    for seed, parent in enumerate(("long", "short")):
        positions = 512 if parent == "long" else 256
        make_checkpoint(tmp_path / parent, seed, tokenizer, tie_word_embeddings=tied, max_position_embeddings=positions)
    (tmp_path / "mergekit.yaml").write_text(yaml.safe_dump(config_of(tmp_path)))
    command = [program, str(tmp_path / "mergekit.yaml"), str(tmp_path / "theirs"), "--no-copy-tokenizer"]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, result.stderr
    config = json.loads((tmp_path / "theirs" / "config.json").read_text())
    assert config["max_position_embeddings"] == 512  # the donor's
    theirs = {n: t for f in (tmp_path / "theirs").glob("*.safetensors") for n, t in load_file(f).items()}
    long, short, _ = open_pair(tmp_path / "long", tmp_path / "short", None, "long")
    ours = MergedSource(long, short, lambda_of, torch.bfloat16)
    assert set(ours.names()) == set(theirs)
    for name in ours.names():
        a, b = ours.get(name), theirs[name]
        assert b.dtype == torch.bfloat16
        # Values of one sign are ordered as their bits are; across 0 both are below the smallest step.
        steps = (a.view(torch.int16).int() - b.view(torch.int16).int()).abs()
        assert ((steps <= 1) | ((a - b).abs().float() < 1e-6)).all(), name
