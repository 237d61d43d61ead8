"""What GGUF needs to know of each architecture: names and metadata. One entry, one architecture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gguf

from rpam_lite.errors import RpamError


@dataclass(frozen=True)
class Architecture:
    """How one Hugging Face `model_type` is written as GGUF."""

    arch: gguf.MODEL_ARCH
    add_metadata: Callable[[gguf.GGUFWriter, dict[str, Any]], None]


def rope_theta(config: dict[str, Any]) -> float:
    """Base frequency, from either spelling: `rope_theta`, or `rope_parameters` of transformers 5.

    Raises:
        RpamError: Neither is there, or the rope is scaled (not supported yet).
    """
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise RpamError(f"config.json: rope type {kind!r} can't be exported to GGUF yet; only 'default' can.")
    theta = rope.get("rope_theta", config.get("rope_theta"))
    if theta is None:
        raise RpamError("config.json: has neither `rope_theta` nor `rope_parameters.rope_theta`; add one.")
    return float(theta)


def _decoder_metadata(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    """Keys that llama.cpp's own converter writes for a dense decoder."""
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_freq_base(rope_theta(config))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])


ARCHITECTURES = {"qwen2": Architecture(gguf.MODEL_ARCH.QWEN2, _decoder_metadata)}


def architecture_of(config: dict[str, Any]) -> Architecture:
    """The entry for a config's `model_type`.

    Raises:
        RpamError: There is none.
    """
    model_type = config.get("model_type")
    if model_type not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise RpamError(
            f"config.json: `model_type` {model_type!r} can't be exported to GGUF yet (known: {known}); "
            "convert the merged folder with llama.cpp's convert_hf_to_gguf.py."
        )
    return ARCHITECTURES[model_type]
