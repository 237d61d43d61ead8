"""Every architecture against transformers, and against llama.cpp's own converter where its source is at hand.

The latter needs RPAM_LLAMA_CPP, the folder of llama.cpp's source (it lies in llama-cpp-python's sdist), and
RPAM_CONVERTER_PYTHON, an interpreter with torch, transformers and sentencepiece.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from export.gguf.architecture import known_architectures
from tests.conftest import make_checkpoint
from tests.export.test_gguf import export, llama_logits

ROPE = {"rope_theta": 10000.0, "original_max_position_embeddings": 64}
LLAMA3 = ROPE | {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = ROPE | {"rope_type": "yarn", "factor": 4.0}
MODELS: dict[str, dict[str, Any]] = {
    "qwen2-tied": {"kind": "qwen2"},
    "qwen2-untied-yarn": {"kind": "qwen2", "tie_word_embeddings": False, "rope_parameters": YARN},
    "qwen3-tied": {"kind": "qwen3", "head_dim": 32},
    "qwen3-untied": {"kind": "qwen3", "head_dim": 32, "tie_word_embeddings": False},
    "llama-tied": {"kind": "llama", "attention_bias": True},
    "llama-untied-llama3": {"kind": "llama", "tie_word_embeddings": False, "rope_parameters": LLAMA3},
    "llama-linear": {"kind": "llama", "rope_parameters": ROPE | {"rope_type": "linear", "factor": 2.0}},
}
# What may differ from llama.cpp's converter: what it guesses from folder names, and what we always say.
DOCUMENTED = {
    "general.name",
    "general.basename",
    "general.finetune",
    "general.version",
    "general.organization",
    "general.size_label",
    "tokenizer.ggml.add_bos_token",
    "tokenizer.ggml.add_eos_token",
    "tokenizer.ggml.add_sep_token",
}


def checkpoint_of(name: str, folder: Path, tokenizer: Any) -> Path:
    return make_checkpoint(folder / name, 3, tokenizer, **MODELS[name])


def test_every_architecture_is_tried() -> None:
    assert {model["kind"] for model in MODELS.values()} == set(known_architectures())


@pytest.mark.parametrize("name", MODELS)
def test_llama_cpp_computes_what_transformers_computes(tmp_path: Path, tokenizer: Any, name: str) -> None:
    checkpoint = checkpoint_of(name, tmp_path, tokenizer)
    tokens = torch.randint(0, 500, (90,), generator=torch.Generator().manual_seed(1)).tolist()
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
        expected = model(torch.tensor([tokens])).logits[0].numpy()
    found = llama_logits(export(checkpoint, tmp_path / "model.gguf", "F32"), tokens)
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
    rough = llama_logits(export(checkpoint, tmp_path / "q8.gguf", "Q8_0"), tokens)
    assert 0 < np.abs(rough - expected).max() <= 0.1 * np.abs(expected).max()


def test_rows_that_do_not_divide_into_blocks_stay_f16(tmp_path: Path, tokenizer: Any) -> None:
    checkpoint = make_checkpoint(tmp_path / "model", 3, tokenizer, hidden_size=80, intermediate_size=96)
    types = {
        t.name: t.tensor_type.name for t in gguf.GGUFReader(export(checkpoint, tmp_path / "m.gguf", "Q8_0")).tensors
    }
    assert types["blk.0.ffn_up.weight"] == "F16"
    assert types["blk.0.ffn_down.weight"] == "Q8_0"
    assert types["blk.0.attn_norm.weight"] == "F32"


# Our tiny vocabulary is none that llama.cpp's converter knows by its hash; so it is told.
CONVERT = """
import runpy, sys
sys.path.insert(0, sys.argv[1])
sys.path.insert(1, sys.argv[1] + "/gguf-py")
from conversion import base
if sys.argv.pop(2) != "-":
    base.TextModel.get_vocab_base_pre = lambda self, tokenizer: "qwen2"
script = sys.argv.pop(1) + "/convert_hf_to_gguf.py"
sys.argv[0] = script
runpy.run_path(script, run_name="__main__")
"""


def official(checkpoint: Path, path: Path, file_type: str, known: bool) -> gguf.GGUFReader:
    source = os.environ.get("RPAM_LLAMA_CPP")
    if source is None:
        pytest.skip("RPAM_LLAMA_CPP names no source of llama.cpp")
    python = os.environ.get("RPAM_CONVERTER_PYTHON", sys.executable)
    arguments = [
        source,
        "-" if known else "qwen2",
        str(checkpoint),
        "--outfile",
        str(path),
        "--outtype",
        file_type.lower(),
    ]
    result = subprocess.run([python, "-c", CONVERT, *arguments], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    return gguf.GGUFReader(path)


def assert_same(ours: gguf.GGUFReader, theirs: gguf.GGUFReader) -> None:
    """Tensors to the byte; metadata but for what is documented."""
    found, expected = ({t.name: t for t in reader.tensors} for reader in (ours, theirs))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].tensor_type == tensor.tensor_type, name
        assert found[name].shape.tolist() == tensor.shape.tolist(), name
        assert found[name].data.tobytes() == tensor.data.tobytes(), name
    own, other = ({k: f.contents() for k, f in r.fields.items() if not k.startswith("GGUF.")} for r in (ours, theirs))
    differing = {key for key in own.keys() | other.keys() if own.get(key) != other.get(key)}
    assert differing <= DOCUMENTED, {key: (own.get(key), other.get(key)) for key in differing - DOCUMENTED}


@pytest.mark.parametrize("name", MODELS)
def test_it_is_what_llama_cpps_converter_writes(tmp_path: Path, tokenizer: Any, name: str) -> None:
    checkpoint = checkpoint_of(name, tmp_path, tokenizer)
    for file_type in ("F32", "F16", "BF16", "Q8_0"):
        theirs = official(checkpoint, tmp_path / f"theirs-{file_type}.gguf", file_type, known=False)
        assert_same(gguf.GGUFReader(export(checkpoint, tmp_path / f"ours-{file_type}.gguf", file_type)), theirs)
