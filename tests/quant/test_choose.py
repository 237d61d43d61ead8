"""Choosing a quantization type: with a made-up divergence, and memory as llama.cpp tells it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from export.gguf.write import write_gguf
from quant import choose
from quant.choose import best_that_fits, general_types, largest_that_fit, smallest_within
from quant.gguf import NEED_IMATRIX, Settings, Size
from quant.memory import ContextMemory, context_memory
from rpam_lite.checkpoint.source import CheckpointSource
from rpam_lite.errors import RpamError
from tests.conftest import make_checkpoint

SIZES = {name: Size(mib, mib / 100) for name, mib in (("A", 100), ("B", 200), ("C", 300), ("D", 400), ("E", 500))}
MEMORY = ContextMemory(cache=60, compute=40)
SETTINGS = Settings(1)


@pytest.fixture
def quantized(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which types were written: empty files."""
    names: list[str] = []
    monkeypatch.setattr(choose, "quantize", lambda source, file, name, settings: (names.append(name), file.touch()))
    return names


def left(folder: Path) -> list[str]:
    return [file.stem for file in folder.glob("*.gguf")]


def test_types_fit_with_cache_and_buffer_at_the_edge_too() -> None:
    assert largest_that_fit(SIZES, MEMORY, 400) == ["C", "B", "A"]
    assert largest_that_fit(SIZES, MEMORY, 399.9) == ["B", "A"]


def test_nothing_fits_is_an_error_that_says_what_would() -> None:
    with pytest.raises(RpamError, match=r"nothing fits 150 MiB; the smallest, A, needs 200 MiB, of which 60"):
        largest_that_fit(SIZES, MEMORY, 150)


def test_of_the_largest_the_one_with_the_smallest_divergence(quantized: list[str], tmp_path: Path) -> None:
    losses = {"E": 0.3, "D": 0.1, "C": 0.2, "B": 0.0}
    names = ["E", "D", "C", "B"]
    name, found = best_that_fits(tmp_path, tmp_path, names, SETTINGS, lambda file: losses[file.stem])
    assert (name, left(tmp_path)) == ("D", ["D"])
    assert quantized == ["E", "D", "C"]
    assert found == {"E": 0.3, "D": 0.1, "C": 0.2}


@pytest.mark.parametrize(("budget", "expected"), [(0.5, "A"), (0.4, "B"), (0.15, "D"), (0.1, "D"), (0.05, "E")])
def test_the_smallest_type_within_a_divergence(
    budget: float, expected: str, quantized: list[str], tmp_path: Path
) -> None:
    losses = {"A": 0.5, "B": 0.4, "C": 0.2, "D": 0.1, "E": 0.05}
    name, found = smallest_within(tmp_path, tmp_path, SIZES, SETTINGS, lambda file: losses[file.stem], budget)
    assert (name, left(tmp_path)) == (expected, [expected])
    assert list(found) == quantized
    assert len(set(quantized)) == len(quantized)


def test_no_type_within_a_divergence(quantized: list[str], tmp_path: Path) -> None:
    with pytest.raises(RpamError, match=r"--budget-kld 0.01: even E is 0.05 nats"):
        smallest_within(tmp_path, tmp_path, SIZES, SETTINGS, lambda file: 0.05, 0.01)


def test_general_types() -> None:
    names = set(general_types(with_imatrix=True))
    assert {"Q4_K_M", "IQ4_XS", "Q8_0", "IQ2_XXS"} <= names
    assert not names & {"TQ1_0", "MXFP4_MOE", "F16", "COPY"}
    assert names - set(general_types(with_imatrix=False)) == names & NEED_IMATRIX


def test_memory_of_a_context_is_the_caches_arithmetic(tmp_path: Path, tokenizer: Any) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint", 3, tokenizer, hidden_size=256, intermediate_size=512)
    source = CheckpointSource(checkpoint)
    config = source.config
    write_gguf(source, config, checkpoint, tmp_path / "f16.gguf", "F16", "test")
    head = config["hidden_size"] // config["num_attention_heads"]
    values = 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * head * 1024
    full = context_memory(tmp_path / "f16.gguf", 1024, "F16")
    assert full.cache == pytest.approx(values * 2 / 2**20, abs=0.01)
    assert full.compute > 0
    assert full.total == full.cache + full.compute
    eight = context_memory(tmp_path / "f16.gguf", 1024, "Q8_0")
    assert eight.cache == pytest.approx(full.cache * 34 / 64, abs=0.01)


def test_an_unknown_cache_type_and_a_broken_file(tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF")
    with pytest.raises(RpamError, match="--cache-type F12: must be one of F16, Q8_0, Q4_0"):
        context_memory(tmp_path / "broken.gguf", 128, "F12")
    with pytest.raises(RpamError, match="can't make a context of 128 tokens"):
        context_memory(tmp_path / "broken.gguf", 128, "F16")
