"""Shapes of well-known models, so that a pair can be planned before it is downloaded."""

from __future__ import annotations

from typing import Any

from transformers import CONFIG_MAPPING

from rpam_lite.errors import RpamError

_QWEN25: dict[str, Any] = {"model_type": "qwen2", "vocab_size": 151936, "tie_word_embeddings": False}
_QWEN3: dict[str, Any] = {"model_type": "qwen3", "vocab_size": 151936, "head_dim": 128, "num_key_value_heads": 8}


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
    "qwen3-4b": _QWEN3 | _size(2560, 9728, 36, 32, tie_word_embeddings=True),
    "qwen3-8b": _QWEN3 | _size(4096, 12288, 36, 32, tie_word_embeddings=False),
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
