"""What GGUF needs to know of each architecture: names and metadata. One entry, one architecture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf

from rpam_lite.checkpoint.source import TensorSource
from rpam_lite.errors import RpamError


@dataclass(frozen=True)
class Architecture:
    """How one Hugging Face `model_type` is written as GGUF."""

    arch: gguf.MODEL_ARCH
    add_metadata: Callable[[gguf.GGUFWriter, dict[str, Any], Path], None]


def rope_theta(config: dict[str, Any], folder: Path) -> float:
    """Base frequency, from either spelling: `rope_theta`, or `rope_parameters` of transformers 5.

    Raises:
        RpamError: Neither is there, or the rope is scaled (not supported yet).
    """
    file = folder / "config.json"
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise RpamError(f"{file}: `rope_parameters` is {rope!r}, not an object; restore the file.")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise RpamError(f"{file}: rope type {kind!r} can't be exported to GGUF yet; only 'default' can.")
    theta = rope.get("rope_theta", config.get("rope_theta"))
    if not isinstance(theta, int | float):
        raise RpamError(f"{file}: `rope_theta` is {theta!r}; it must be a number, there or in `rope_parameters`.")
    return float(theta)


def _decoder_metadata(writer: gguf.GGUFWriter, config: dict[str, Any], folder: Path) -> None:
    """Keys that llama.cpp's own converter writes for a dense decoder."""
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_freq_base(rope_theta(config, folder))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])


REQUIRED = (
    "num_hidden_layers",
    "max_position_embeddings",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "rms_norm_eps",
)
ARCHITECTURES = {"qwen2": Architecture(gguf.MODEL_ARCH.QWEN2, _decoder_metadata)}


def architecture_of(config: dict[str, Any], folder: Path) -> Architecture:
    """The entry for a config's `model_type`.

    Raises:
        RpamError: There is none, or the config lacks a value that GGUF needs.
    """
    model_type = config.get("model_type")
    if model_type not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise RpamError(
            f"{folder / 'config.json'}: `model_type` {model_type!r} can't be exported to GGUF yet (known: {known}); "
            "convert the merged folder with llama.cpp's convert_hf_to_gguf.py."
        )
    for key in REQUIRED:
        if not isinstance(config.get(key), int | float):
            raise RpamError(f"{folder / 'config.json'}: `{key}` is {config.get(key)!r}; it must be a number.")
    return ARCHITECTURES[model_type]


def gguf_names(names: Sequence[str], config: dict[str, Any], folder: Path) -> dict[str, str]:
    """GGUF's name of every tensor.

    Raises:
        RpamError: Unknown architecture, or a tensor that has no place in it.
    """
    architecture = architecture_of(config, folder)
    table = gguf.get_tensor_name_map(architecture.arch, config["num_hidden_layers"])
    result = {}
    for name in names:
        gguf_name = table.get_name(name, try_suffixes=(".weight", ".bias"))
        if gguf_name is None:
            raise RpamError(f"{folder}: tensor {name!r} has no place in a {config['model_type']} GGUF file.")
        result[name] = gguf_name
    return result


def check_names(source: TensorSource, config: dict[str, Any], folder: Path) -> None:
    """Raise the error that the export would raise, before any work."""
    gguf_names(source.names(), config, folder)
    rope_theta(config, folder)
