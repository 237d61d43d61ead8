"""Checkpoints with the real vocabularies of Qwen2, R1-Distill-Qwen and Llama 3, tokenized by llama.cpp."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
from tokenizers import Tokenizer

from export.gguf.tokenizer import PRE_TOKENIZERS, probed_name
from quant.engines.llama_cpp import LlamaCppEngine
from rpam_lite.errors import RpamError
from tests.conftest import make_checkpoint
from tests.export.real_vocabulary import R1_TOKENS, vectors, write_tokenizer
from tests.export.test_converter import assert_same, official
from tests.export.test_gguf import export

R1_BOS = R1_TOKENS[151646]
MODELS: dict[str, tuple[str, dict[int, str], str | None, str]] = {
    "qwen2": ("ggml-vocab-qwen2.gguf", {}, None, "qwen2"),
    "r1-distill-qwen": ("ggml-vocab-qwen2.gguf", R1_TOKENS, R1_BOS, "deepseek-r1-qwen"),
    "llama-3": ("ggml-vocab-llama-bpe.gguf", {}, "<|begin_of_text|>", "llama-bpe"),
}


def checkpoint_of(name: str, shared: Path, folder: Path, tokenizer: Any) -> tuple[Path, Path]:
    """A tiny model that carries the vocabulary, and the vocabulary's file."""
    file, replaced, bos, _ = MODELS[name]
    kind = "llama" if name == "llama-3" else "qwen2"
    rows = 128256 if kind == "llama" else 151936
    sizes = {"vocab_size": rows, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    checkpoint = make_checkpoint(folder / name, 3, tokenizer, kind=kind, **sizes)
    write_tokenizer(checkpoint, shared / "vocab" / file, replaced, bos)
    return checkpoint, shared / "vocab" / file


@pytest.mark.parametrize("name", MODELS)
def test_every_vector_is_tokenized_exactly(shared_data: Path, tmp_path: Path, tokenizer: Any, name: str) -> None:
    checkpoint, file = checkpoint_of(name, shared_data, tmp_path, tokenizer)
    with LlamaCppEngine(export(checkpoint, tmp_path / "model.gguf", "F16"), threads=1) as engine:
        assert engine.metadata("tokenizer.ggml.pre") == MODELS[name][3]
        assert engine.metadata("tokenizer.ggml.add_bos_token") == str(MODELS[name][2] is not None).lower()
        compared = vectors(file)
        assert len(compared) > 40
        for text, ids in compared:
            assert list(engine.tokenize(text)) == ids, text
        reference = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
        for number, text in MODELS[name][1].items():
            assert list(engine.tokenize(text)) == [number], text
            mixed = f"{text}So 3 + 4 = 7.{text}\n"
            assert list(engine.tokenize(mixed)) == reference.encode(mixed, add_special_tokens=False).ids


@pytest.mark.parametrize("name", MODELS)
def test_it_is_what_llama_cpps_converter_writes(shared_data: Path, tmp_path: Path, tokenizer: Any, name: str) -> None:
    """Which here finds the name of the pre-tokenizer by its own hash."""
    checkpoint, _ = checkpoint_of(name, shared_data, tmp_path, tokenizer)
    theirs = official(checkpoint, tmp_path / "theirs.gguf", "F16", known=True)
    assert_same(gguf.GGUFReader(export(checkpoint, tmp_path / "ours.gguf", "F16")), theirs)


def test_ids_of_one_model_with_the_split_of_another_are_refused(shared_data: Path, tmp_path: Path) -> None:
    write_tokenizer(tmp_path, shared_data / "vocab" / "ggml-vocab-qwen2.gguf")
    assert json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))["model"]["type"] == "BPE"
    other = next(n for n in PRE_TOKENIZERS.values() if n != "qwen2")
    with pytest.raises(RpamError, match=f"splits text as {other} does, and its token ids are those of qwen2"):
        probed_name(other, tmp_path)
