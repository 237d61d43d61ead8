"""Shapes of well-known models, so that a pair can be planned before it is downloaded."""

from __future__ import annotations

from typing import Any

from transformers import CONFIG_MAPPING

from rpam_lite.errors import RpamError

_QWEN25: dict[str, Any] = {"model_type": "qwen2", "vocab_size": 151936, "tie_word_embeddings": False}
_QWEN3: dict[str, Any] = {"model_type": "qwen3", "vocab_size": 151936, "head_dim": 128, "num_key_value_heads": 8}
_LLAMA3: dict[str, Any] = {"model_type": "llama", "vocab_size": 128256, "num_key_value_heads": 8}


def _size(hidden: int, intermediate: int, layers: int, heads: int, **more: Any) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        **more,
    }


SHAPES: dict[str, dict[str, Any]] = {
    "qwen2.5-0.5b": _QWEN25 | _size(896, 4864, 24, 14, num_key_value_heads=2, tie_word_embeddings=True),
    "qwen2.5-1.5b": _QWEN25 | _size(1536, 8960, 28, 12, num_key_value_heads=2, tie_word_embeddings=True),
    "qwen2.5-3b": _QWEN25 | _size(2048, 11008, 36, 16, num_key_value_heads=2, tie_word_embeddings=True),
    "qwen2.5-7b": _QWEN25 | _size(3584, 18944, 28, 28, num_key_value_heads=4, vocab_size=152064),
    "qwen2.5-14b": _QWEN25 | _size(5120, 13824, 48, 40, num_key_value_heads=8, vocab_size=152064),
    "qwen2.5-32b": _QWEN25 | _size(5120, 27648, 64, 40, num_key_value_heads=8, vocab_size=152064),
    "qwen3-0.6b": _QWEN3 | _size(1024, 3072, 28, 16, tie_word_embeddings=True),
    "qwen3-1.7b": _QWEN3 | _size(2048, 6144, 28, 16, tie_word_embeddings=True),
    "qwen3-4b": _QWEN3 | _size(2560, 9728, 36, 32, tie_word_embeddings=True),
    "qwen3-8b": _QWEN3 | _size(4096, 12288, 36, 32, tie_word_embeddings=False),
    "llama-3.1-8b": _LLAMA3 | _size(4096, 14336, 32, 32, tie_word_embeddings=False),
}
# Of the parents in our recipes, for where the hub can't be asked.
_OF_HUB_ID = {
    "deepseek-ai/DeepSeek-R1-Distill-Llama-8B": "llama-3.1-8b",
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": "qwen2.5-1.5b",
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": "qwen2.5-7b",
    "meta-llama/Llama-3.1-8B-Instruct": "llama-3.1-8b",
    "Qwen/Qwen2.5-Math-1.5B": "qwen2.5-1.5b",
    "Qwen/Qwen2.5-Math-1.5B-Instruct": "qwen2.5-1.5b",
    "Qwen/Qwen2.5-Math-7B": "qwen2.5-7b",
    "Qwen/Qwen2.5-Math-7B-Instruct": "qwen2.5-7b",
    "Qwen/Qwen3-0.6B": "qwen3-0.6b",
    "Qwen/Qwen3-0.6B-Base": "qwen3-0.6b",
    "Qwen/Qwen3-1.7B": "qwen3-1.7b",
    "Qwen/Qwen3-1.7B-Base": "qwen3-1.7b",
    "Qwen/Qwen3-4B-Instruct-2507": "qwen3-4b",
    "Qwen/Qwen3-4B-Thinking-2507": "qwen3-4b",
}


def config_of_shape(name: str) -> Any:
    """The config of a well-known model.

    Raises:
        RpamError: The name is unknown.
    """
    if name not in SHAPES:
        raise RpamError(f"--shape {name}: unknown; known ones are {', '.join(SHAPES)}.")
    settings = dict(SHAPES[name])
    return CONFIG_MAPPING[settings.pop("model_type")](**settings)


def shape_of_hub_id(hub_id: str) -> str | None:
    """Name of the shape that a model of the hub has, whatever its revision; None where it is not known."""
    return _OF_HUB_ID.get(hub_id.partition("@")[0])
