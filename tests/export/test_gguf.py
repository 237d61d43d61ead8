"""The GGUF file: llama.cpp computes what transformers computes, and tokenizes what tokenizers does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from export.gguf.write import write_gguf
from quant.engines.llama_cpp import LlamaCppEngine
from recipes.tiny.arithmetic import long_response
from recipes.tiny.questions import draw_questions
from rpam_lite.checkpoint.source import CheckpointSource
from rpam_lite.errors import RpamError
from tests.conftest import make_checkpoint


def export(checkpoint: Path, path: Path, file_type: str = "F32") -> Path:
    source = CheckpointSource(checkpoint)
    write_gguf(source, source.config, checkpoint, path, file_type, "test")  # type: ignore[arg-type]
    return path


def llama_logits(file: Path, tokens: list[int]) -> np.ndarray:
    """Logits at every position: F32 cache, no flash attention."""
    model = llama_cpp.Llama(
        str(file), n_ctx=256, logits_all=True, verbose=False, n_threads=1, flash_attn=False, type_k=0, type_v=0
    )
    model.eval(tokens)
    return np.array(model.scores[: len(tokens)])


@pytest.mark.parametrize("tied", [True, False])
def test_llama_cpp_computes_the_same_logits(tmp_path: Path, tokenizer: Any, tied: bool) -> None:
    checkpoint = make_checkpoint(tmp_path / "model", 3, tokenizer, tie_word_embeddings=tied)
    tokens = tokenizer.encode("What is 3 + 4 - 5?").ids
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
        expected = model(torch.tensor([tokens])).logits[0].numpy()
    for file_type, tolerance in (("F32", 1e-4), ("F16", 2e-2), ("BF16", 2e-2)):
        found = llama_logits(export(checkpoint, tmp_path / f"{file_type}.gguf", file_type), tokens)
        assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max(), file_type


def test_a_tied_head_is_not_written_twice(tmp_path: Path, tokenizer: Any) -> None:
    names = {}
    for tied in (True, False):
        checkpoint = make_checkpoint(tmp_path / f"tied-{tied}", 3, tokenizer, tie_word_embeddings=tied)
        names[tied] = {t.name for t in gguf.GGUFReader(export(checkpoint, tmp_path / f"{tied}.gguf")).tensors}
    assert names[False] - names[True] == {"output.weight"}


def test_llama_cpp_tokenizes_as_tokenizers_does(pair: Path, tmp_path: Path) -> None:
    engine = LlamaCppEngine(export(pair / "long", tmp_path / "model.gguf"), threads=1)
    reference = Tokenizer.from_file(str(pair / "long" / "tokenizer.json"))
    texts = [text for p, question in draw_questions("evaluation", 3, 1) for text in (question, long_response(p))]
    texts += [
        "<|im_start|>user\nHello<|im_end|>",
        "<think></think>",
        "  two  spaces\n\n\nand é ü 漢字 🙂 don't 123",
        "",
    ]
    for text in texts:
        assert list(engine.tokenize(text)) == reference.encode(text).ids, text


def test_the_chat_prompt_is_the_checkpoints_own(pair: Path, tmp_path: Path) -> None:
    engine = LlamaCppEngine(export(pair / "long", tmp_path / "model.gguf"), threads=1)
    reference = AutoTokenizer.from_pretrained(pair / "long")
    question = "What is 3 + 4?"
    expected = reference.apply_chat_template([{"role": "user", "content": question}], add_generation_prompt=True)
    assert list(engine.chat_prompt(question)) == list(expected["input_ids"])


def test_rows_without_a_token_become_unused_entries(pair: Path, tmp_path: Path) -> None:
    reader = gguf.GGUFReader(export(pair / "long", tmp_path / "model.gguf"))
    field = reader.get_field("tokenizer.ggml.tokens")
    types = reader.get_field("tokenizer.ggml.token_type")
    assert field is not None
    assert types is not None
    tokens, kinds = field.contents(), types.contents()
    assert len(tokens) == len(kinds) == 512
    assert tokens[511] == "[PAD511]"
    assert kinds[511] == gguf.TokenType.UNUSED
    assert kinds[tokens.index("<|im_end|>")] == gguf.TokenType.CONTROL
    assert kinds[tokens.index("<think>")] == gguf.TokenType.USER_DEFINED


def test_same_inputs_same_bytes(pair: Path, tmp_path: Path) -> None:
    one, two = (export(pair / "long", tmp_path / name, "F16") for name in ("one.gguf", "two.gguf"))
    assert one.read_bytes() == two.read_bytes()


def test_what_cannot_be_exported_is_refused_by_name(pair: Path, tmp_path: Path, edit_json: Callable[..., None]) -> None:
    target = tmp_path / "model.gguf"
    config, tokenizer_file = pair / "long" / "config.json", pair / "long" / "tokenizer.json"
    original = config.read_text(encoding="utf-8")
    edit_json(config, model_type="mamba")
    with pytest.raises(RpamError, match="'mamba' can't be exported"):
        export(pair / "long", target)
    for rope, message in (
        (
            {"rope_type": "llama3", "rope_theta": 1e6},
            "rope type 'llama3' can't be exported for qwen2; .* default, linear",
        ),
        ({"rope_type": "longrope", "rope_theta": 1e6}, "rope type 'longrope' can't be exported"),
        ({"rope_type": "yarn", "rope_theta": 1e6}, "`factor` of the rope is None"),
        (
            {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0},
            "`original_max_position_embeddings` of the rope is None",
        ),
        ({"rope_type": "default"}, "`rope_theta` of the rope is None"),
    ):
        edit_json(config, model_type="qwen2", rope_parameters=rope)
        with pytest.raises(RpamError, match=message):
            export(pair / "long", target)
    config.write_text(original, encoding="utf-8")
    tokenizer = json.loads(tokenizer_file.read_text(encoding="utf-8"))
    tokenizer["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\w+"
    tokenizer_file.write_text(json.dumps(tokenizer), encoding="utf-8")
    with pytest.raises(RpamError, match="split expression"):
        export(pair / "long", target)
    assert not list(tmp_path.glob("model.gguf*"))


def test_a_value_that_is_not_finite_is_refused(pair: Path, tmp_path: Path) -> None:
    class Damaged(CheckpointSource):
        def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
            tensor = super().rows(name, start, stop)
            return tensor * float("nan") if name.endswith("up_proj.weight") else tensor

    source = Damaged(pair / "long")
    with pytest.raises(RpamError, match=r"up_proj\.weight: holds inf or NaN"):
        write_gguf(source, source.config, source.folder, tmp_path / "model.gguf", "F16", "test")
    assert not list(tmp_path.glob("model.gguf*"))


def test_metadata_that_ollama_and_llama_cpp_need(pair: Path, tmp_path: Path) -> None:
    engine = LlamaCppEngine(export(pair / "long", tmp_path / "model.gguf"), threads=1)
    assert engine.metadata("general.architecture") == "qwen2"
    assert engine.metadata("qwen2.context_length") == "512"
    assert engine.metadata("tokenizer.ggml.pre") == "qwen2"
    assert "<|im_start|>" in (engine.metadata("tokenizer.chat_template") or "")
    assert engine.metadata("no.such.key") is None
