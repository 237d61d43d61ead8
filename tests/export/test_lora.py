"""The merge as a LoRA adapter: what peft makes of it, and how much it keeps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from export.lora import Kept, write_lora
from rpam_lite.checkpoint.pair import open_pair, open_parent
from rpam_lite.errors import RpamError
from rpam_lite.merge.apply import MergedSource
from tests.rpam_lite.models import config_of, random_model


@pytest.fixture
def near(tmp_path: Path) -> Path:
    """Parents that differ in decoder layers' matrices and norms alone."""
    short = random_model(config_of("llama"), 1)
    short.save_pretrained(tmp_path / "short")
    torch.manual_seed(2)
    with torch.no_grad():
        for name, parameter in short.named_parameters():
            if ".layers." in name or name.endswith("norm.weight"):
                parameter.add_(0.05 * torch.randn_like(parameter))
    short.save_pretrained(tmp_path / "long")
    return tmp_path


def export(pair: Path, folder: Path, rank: int, floor: float = 0.0) -> tuple[MergedSource, list[Kept]]:
    long, short, _ = open_pair(pair / "long", pair / "short", pair / "short", "short")
    merged = MergedSource(long, short, lambda name: 0.4, torch.float32)
    base = pair / "short"
    kept = write_lora(
        merged.names(), lambda n: merged.get(n) - short.get(n), merged.get, str(base), base, rank, floor, folder
    )
    return merged, kept


@pytest.fixture(autouse=True)
def tokenizers(near: Path) -> None:
    for parent in ("long", "short"):
        (near / parent / "tokenizer.json").write_text(json.dumps({"model": {"type": "BPE", "vocab": {"a": 0}}}))


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(torch.arange(20)[None]).logits
    return found


def test_with_full_rank_it_is_the_merge(near: Path, tmp_path: Path) -> None:
    merged, kept = export(near, tmp_path / "adapter", rank=48)
    assert all(k.share > 0.9999 for k in kept)
    base = AutoModelForCausalLM.from_pretrained(near / "short")
    adapted = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
    reference = AutoModelForCausalLM.from_pretrained(near / "short").eval()
    reference.load_state_dict({n: merged.get(n) for n in merged.names()}, strict=False)
    torch.testing.assert_close(logits(adapted), logits(reference), atol=1e-4, rtol=1e-4)
    again = open_parent(tmp_path / "adapter", near / "short")
    for name in merged.names():
        torch.testing.assert_close(again.get(name), merged.get(name), atol=1e-5, rtol=1e-4)


def test_the_merges_tokenizer_is_beside_it(near: Path, tmp_path: Path) -> None:
    export(near, tmp_path / "adapter", rank=48)
    copied = (tmp_path / "adapter" / "tokenizer.json").read_bytes()
    assert copied == (near / "short" / "tokenizer.json").read_bytes()


def test_the_energy_is_that_of_the_singular_values(near: Path, tmp_path: Path) -> None:
    merged, kept = export(near, tmp_path / "adapter", rank=4)
    name = "model.layers.1.mlp.up_proj.weight"
    short = open_parent(near / "short").get(name)
    delta = merged.get(name) - short
    values = torch.linalg.svdvals(delta.double())
    expected = float(values[:4].square().sum() / values.square().sum())
    found = next(k for k in kept if k.name == name)
    assert found.share == pytest.approx(expected, rel=1e-4)
    assert 0.1 < found.share < 0.9
    left = open_parent(tmp_path / "adapter", near / "short").get(name) - merged.get(name)
    assert float(left.square().sum() / delta.square().sum()) == pytest.approx(1 - expected, rel=1e-3)
    told = json.loads((tmp_path / "adapter" / "energy.json").read_text())
    assert told["tensors"][name]["kept"] == pytest.approx(expected, rel=1e-4)


def test_too_little_is_refused_and_nothing_is_left(near: Path, tmp_path: Path) -> None:
    with pytest.raises(RpamError, match=r"rank 2 keeps \d+\.\d % of the difference's energy, below 90 %.*Raise --rank"):
        export(near, tmp_path / "adapter", rank=2, floor=0.9)
    assert not (tmp_path / "adapter").exists()


def test_a_folder_that_holds_something_else_is_left_alone(near: Path, tmp_path: Path) -> None:
    with pytest.raises(RpamError, match="is there already and no adapter of ours"):
        export(near, near / "long", rank=48)
    assert (near / "long" / "config.json").exists()
    export(near, tmp_path / "adapter", rank=48)
    export(near, tmp_path / "adapter", rank=40)
