"""Vocabularies matched by token string: other ids, other rows, tied and separate heads, real vocabularies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import llama_cpp
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from rpam_lite.checkpoint.aligned import EMBEDDING, HEAD, AlignedSource, match_rows
from rpam_lite.checkpoint.pair import open_pair
from rpam_lite.checkpoint.write import write_checkpoint
from rpam_lite.merge.apply import MergedSource
from tests.conftest import make_checkpoint

# What DeepSeek-R1-Distill-Qwen puts on Qwen's ids.
R1_TOKENS = {
    151643: "<｜end▁of▁sentence｜>",
    151646: "<｜begin▁of▁sentence｜>",
    151648: "<think>",
    151649: "</think>",
}


def test_same_id_other_id_unknown_and_padding() -> None:
    donor = {0: "a", 1: "<think>", 2: "c", 3: "d"}
    parent = {0: "a", 1: "<|box|>", 2: "d", 3: "c"}
    matched = match_rows(donor, parent, donor_rows=6, parent_rows=5)
    assert matched.rows.tolist() == [0, -1, 3, 2, 4, -1]
    assert (matched.moved, matched.lone, matched.dropped) == (2, (1,), 1)
    assert not matched.is_identity


@given(st.permutations(range(12)), st.integers(0, 12))
def test_every_string_finds_its_row(order: list[int], known: int) -> None:
    donor = {i: f"t{i}" for i in range(12)}
    parent = {i: f"t{t}" for i, t in enumerate(order[:known])}
    rows = match_rows(donor, parent, 12, 12).rows.tolist()
    for i, row in enumerate(rows):
        assert parent.get(row) == donor[i] if donor[i] in parent.values() else row == -1


def replace_token(folder: Path, old: str, new: str) -> None:
    """The same id, another string."""
    file = folder / "tokenizer.json"
    file.write_text(file.read_text(encoding="utf-8").replace(json.dumps(old), json.dumps(new)), encoding="utf-8")


def merge(
    pair: Path, folder: Path, donor: str, weight: float = 0.25, chunk_values: int = 500
) -> dict[str, torch.Tensor]:
    long, short, giver = open_pair(pair / "long", pair / "short", None, donor)
    source = MergedSource(long, short, lambda name: weight, torch.bfloat16)
    write_checkpoint(source, giver.config, giver.folder, folder, torch.bfloat16, {}, chunk_values=chunk_values)
    merged: dict[str, torch.Tensor] = load_file(folder / "model.safetensors")
    return merged


@pytest.mark.parametrize("donor", ["long", "short"])
def test_a_token_of_the_donor_alone_keeps_the_donors_row(
    pair: Path, tmp_path: Path, tokenizer: Any, donor: str
) -> None:
    replace_token(pair / "long", "<think>", "<reason>")
    row = tokenizer.token_to_id("<think>")
    merged = merge(pair, tmp_path / "merged", donor)
    long, short = (load_file(pair / p / "model.safetensors") for p in ("long", "short"))
    own = long if donor == "long" else short
    assert torch.equal(merged[EMBEDDING][row], own[EMBEDDING][row])
    other = short[EMBEDDING].float() + 0.25 * (long[EMBEDDING].float() - short[EMBEDDING].float())
    assert torch.equal(merged[EMBEDDING][row + 1 :], other.bfloat16()[row + 1 :])
    assert torch.equal(merged[EMBEDDING][:row], other.bfloat16()[:row])


def test_a_token_under_another_id_is_found_by_its_string(pair: Path, tmp_path: Path, tokenizer: Any) -> None:
    replace_token(pair / "short", "<think>", "?swap?")
    replace_token(pair / "short", "</think>", "<think>")
    replace_token(pair / "short", "?swap?", "</think>")
    opening, closing = tokenizer.token_to_id("<think>"), tokenizer.token_to_id("</think>")
    merged = merge(pair, tmp_path / "merged", "long")
    long, short = (load_file(pair / p / "model.safetensors")[EMBEDDING].float() for p in ("long", "short"))
    for row, own in ((opening, closing), (closing, opening)):
        assert torch.equal(merged[EMBEDDING][row], (short[own] + 0.25 * (long[row] - short[own])).bfloat16())


def test_other_row_counts_take_the_donors(tmp_path: Path, tokenizer: Any) -> None:
    """480 rows against 512: the last ones of the larger are padding."""
    for donor, rows in (("long", 512), ("short", 480)):
        pair = tmp_path / donor
        make_checkpoint(pair / "long", 1, tokenizer)
        make_checkpoint(pair / "short", 2, tokenizer, vocab_size=480)
        merged = merge(pair, pair / "merged", donor)
        long, short = (load_file(pair / p / "model.safetensors")[EMBEDDING] for p in ("long", "short"))
        assert merged[EMBEDDING].shape == (rows, 64)
        shared = short.float() + 0.25 * (long.float()[:480] - short.float())
        assert torch.equal(merged[EMBEDDING][:480], shared.bfloat16())
        assert torch.equal(merged[EMBEDDING][480:], long[480:rows])


def test_a_tied_head_meets_a_separate_one(tmp_path: Path, tokenizer: Any) -> None:
    """The tied parent's head is its embedding; the donor's config says that there are two."""
    make_checkpoint(tmp_path / "long", 1, tokenizer, tie_word_embeddings=False)
    make_checkpoint(tmp_path / "short", 2, tokenizer)
    merged = merge(tmp_path, tmp_path / "merged", "long")
    long, short = (load_file(tmp_path / p / "model.safetensors") for p in ("long", "short"))
    s = short[EMBEDDING].float()
    assert torch.equal(merged[HEAD], (s + 0.25 * (long[HEAD].float() - s)).bfloat16())
    assert torch.equal(merged[EMBEDDING], (s + 0.25 * (long[EMBEDDING].float() - s)).bfloat16())


def write_real(folder: Path, tokens: list[str], replaced: dict[int, str], seed: int) -> None:
    """A checkpoint of one narrow layer with a real vocabulary, the last ids being added tokens."""
    folder.mkdir(parents=True)
    texts = {i: replaced.get(i, text) for i, text in enumerate(tokens)}
    tokenizer = {
        "model": {"type": "BPE", "vocab": {t: i for i, t in texts.items() if i < 151643}, "merges": []},
        "added_tokens": [{"id": i, "content": t, "special": True} for i, t in texts.items() if i >= 151643],
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2", "vocab_size": len(tokens)}))
    generator = torch.Generator().manual_seed(seed)
    weights = {n: torch.randn(len(tokens), 4, generator=generator).bfloat16() for n in (EMBEDDING, HEAD)}
    save_file(weights, folder / "model.safetensors")


def tokens_of(file: Path) -> list[str]:
    """Token strings of a GGUF file, through llama.cpp (the gguf package takes half a minute for the merges)."""
    settings = llama_cpp.llama_model_default_params()
    settings.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(str(file).encode(), settings)
    vocab = llama_cpp.llama_model_get_vocab(model)
    count = llama_cpp.llama_vocab_n_tokens(vocab)
    tokens = [llama_cpp.llama_vocab_get_text(vocab, i).decode("utf-8") for i in range(count)]
    llama_cpp.llama_model_free(model)
    return tokens


def test_r1_distill_and_qwen_with_the_real_vocabulary(shared_data: Path, tmp_path: Path) -> None:
    file = shared_data / "vocab" / "ggml-vocab-qwen2.gguf"
    tokens = tokens_of(file)
    assert len(tokens) == 151936
    write_real(tmp_path / "long", tokens, R1_TOKENS, 1)
    write_real(tmp_path / "short", tokens, {}, 2)
    merged = merge(tmp_path, tmp_path / "merged", "long", chunk_values=1 << 20)
    long, short = (load_file(tmp_path / p / "model.safetensors") for p in ("long", "short"))
    lone = torch.zeros(len(tokens), dtype=torch.bool)
    lone[list(R1_TOKENS)] = True
    source = open_pair(tmp_path / "long", tmp_path / "short", None, "long").short
    assert isinstance(source, AlignedSource)
    for name in (EMBEDDING, HEAD):
        mixed = (short[name].float() + 0.25 * (long[name].float() - short[name].float())).bfloat16()
        assert torch.equal(merged[name][lone], long[name][lone])
        assert torch.equal(merged[name][~lone], mixed[~lone])
        assert not torch.equal(merged[name][lone], mixed[lone])
