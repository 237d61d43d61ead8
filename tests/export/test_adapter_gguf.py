"""The LoRA export as a GGUF adapter: base file and adapter together give the merge's logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from export.gguf.adapter import write_adapter_gguf
from export.lora import write_lora
from rpam_lite.checkpoint.source import CheckpointSource
from rpam_lite.errors import RpamError
from tests.conftest import make_checkpoint
from tests.export.test_gguf import export

TOKENS = list(range(40, 90))


def logits(file: Path, adapter: Path | None) -> np.ndarray:
    model = llama_cpp.Llama(
        str(file),
        lora_path=str(adapter) if adapter else None,
        n_ctx=256,
        logits_all=True,
        verbose=False,
        n_threads=1,
        flash_attn=False,
        type_k=0,
        type_v=0,
    )
    model.eval(TOKENS)
    return np.array(model.scores[: len(TOKENS)])


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
def test_base_and_adapter_give_the_merges_logits(tmp_path: Path, tokenizer: Any, kind: str) -> None:
    base = make_checkpoint(tmp_path / "base", 3, tokenizer, kind=kind)
    source = CheckpointSource(base)
    deltas: dict[str, torch.Tensor] = {}
    generator = torch.Generator().manual_seed(7)
    for name in source.names():
        deltas[name] = torch.zeros(source.shape(name))
        if ".layers." in name and len(source.shape(name)) == 2:
            rows, columns = source.shape(name)
            halves = torch.randn(rows, 8, generator=generator), torch.randn(8, columns, generator=generator)
            deltas[name] = 0.02 * halves[0] @ halves[1]
    write_lora(
        source.names(), deltas.__getitem__, lambda n: source.get(n).float(), "base", base, 8, 0.9, tmp_path / "lora"
    )
    norms = write_adapter_gguf(tmp_path / "lora", source.config, base, tmp_path / "adapter.gguf")
    assert norms == 5
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    plain = model(torch.tensor([TOKENS])).logits[0].detach().numpy()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(deltas[name])
        merged = model(torch.tensor([TOKENS])).logits[0].numpy()
    file = export(base, tmp_path / "base.gguf")
    largest = np.abs(merged).max()
    assert np.abs(merged - plain).max() > 0.1 * largest
    assert np.abs(logits(file, None) - plain).max() < 1e-4 * largest
    assert np.abs(logits(file, tmp_path / "adapter.gguf") - merged).max() < 1e-2 * largest


def test_half_an_adapter_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    base = make_checkpoint(tmp_path / "base", 3, tokenizer)
    source = CheckpointSource(base)
    ones = (lambda n: torch.ones(source.shape(n)), lambda n: source.get(n).float())
    write_lora(source.names(), *ones, "base", base, 4, 0.0, tmp_path / "lora")
    file = tmp_path / "lora" / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors.pop(next(name for name in tensors if ".lora_B." in name))
    save_file(tensors, file)
    with pytest.raises(RpamError, match="one without its other half"):
        write_adapter_gguf(tmp_path / "lora", source.config, base, tmp_path / "adapter.gguf")
    assert not list(tmp_path.glob("adapter.gguf*"))
