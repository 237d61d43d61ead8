"""Tiny random checkpoints of several architectures, and the naive way to do what the engine does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

COMMON: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "qwen2": {"tie_word_embeddings": True},
    "qwen2-sliding": {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    "qwen3": {"head_dim": 16},
    "llama": {"rope_parameters": LLAMA3_ROPE},
    "mistral": {"sliding_window": 6},
    "phi3": {},
    "smollm3": {},
    "granite": {"embedding_multiplier": 3.0, "logits_scaling": 2.0, "residual_multiplier": 0.5},
}


def config_of(architecture: str, **changes: Any) -> Any:
    """Config of a tiny model."""
    kind = architecture.split("-")[0]
    return CONFIG_MAPPING[kind](**COMMON | ARCHITECTURES.get(architecture, {}) | changes)


def random_model(config: Any, seed: int) -> PreTrainedModel:
    """Random weights, norms and biases random too, so that mistakes in them show."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def save_pair(folder: Path, architecture: str, spread: float = 0.05, dtype: torch.dtype = torch.float32) -> Path:
    """A Short parent and a Long one nearby, as `folder`/short and `folder`/long."""
    config = config_of(architecture)
    short = random_model(config, 1)
    short.to(dtype).save_pretrained(folder / "short")
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in short.parameters():
            parameter.add_(spread * torch.randn_like(parameter))
    short.save_pretrained(folder / "long", max_shard_size="40KB")
    return folder


def layer_outputs(model: PreTrainedModel, **inputs: Any) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Every decoder layer's output, and the logits."""
    outputs: list[torch.Tensor] = []

    def keep(module: torch.nn.Module, args: Any, output: Any) -> None:
        outputs.append(output[0] if isinstance(output, tuple) else output)

    hooks = [layer.register_forward_hook(keep) for layer in model.get_decoder().layers]
    try:
        logits = model(use_cache=False, **inputs).logits
    finally:
        for hook in hooks:
            hook.remove()
    return outputs, logits
