"""What GGUF needs to know of an architecture, found by its `model_type`.

Each architecture is a file in `export/gguf/architectures` that defines `ARCHITECTURE`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import gguf

from export.gguf import architectures
from export.gguf.rope import Rope, read_rope
from rpam_lite.checkpoint.source import TensorSource
from rpam_lite.errors import RpamError

# GGUF's writer method for every value that all architectures have, by its name in config.json.
DECODER_KEYS = {
    "num_hidden_layers": "add_block_count",
    "max_position_embeddings": "add_context_length",
    "hidden_size": "add_embedding_length",
    "intermediate_size": "add_feed_forward_length",
    "num_attention_heads": "add_head_count",
    "num_key_value_heads": "add_head_count_kv",
    "rms_norm_eps": "add_layer_norm_rms_eps",
}


@dataclass(frozen=True)
class Architecture:
    """How one Hugging Face `model_type` is written as GGUF.

    Attributes:
        model_type: Its name in config.json.
        arch: Its name in GGUF.
        ropes: Rope types that llama.cpp computes for it.
        rotary_heads: Tensors whose rows must leave Hugging Face's rotary layout, by the end of their
            name, with the config key that counts their heads.
        vocabulary_keys: Whether vocabulary size, rope dimensions and the tokenizer's space prefix are
            written too.
        needs_head_dim: Whether the config must say `head_dim`.
    """

    model_type: str
    arch: gguf.MODEL_ARCH
    ropes: frozenset[str] = frozenset({"default", "linear", "yarn"})
    rotary_heads: tuple[tuple[str, str], ...] = ()
    vocabulary_keys: bool = False
    needs_head_dim: bool = False


@cache
def known_architectures() -> dict[str, Architecture]:
    """Every architecture by its `model_type`."""
    modules = [
        importlib.import_module(f"{architectures.__name__}.{m.name}")
        for m in pkgutil.iter_modules(architectures.__path__)
    ]
    return {m.ARCHITECTURE.model_type: m.ARCHITECTURE for m in modules}


def architecture_of(config: dict[str, Any], folder: Path) -> Architecture:
    """The entry for a config's `model_type`.

    Raises:
        RpamError: There is none, or the config lacks a value that GGUF needs.
    """
    file, known = folder / "config.json", known_architectures()
    model_type = config.get("model_type")
    if model_type not in known:
        raise RpamError(
            f"{file}: `model_type` {model_type!r} can't be exported to GGUF yet (known: {', '.join(sorted(known))}); "
            "convert the merged folder with llama.cpp's convert_hf_to_gguf.py."
        )
    for key in (*DECODER_KEYS, *(["head_dim"] if known[model_type].needs_head_dim else [])):
        if not isinstance(config.get(key), int | float):
            raise RpamError(f"{file}: `{key}` is {config.get(key)!r}; it must be a number.")
    return known[model_type]


def rope_of(architecture: Architecture, config: dict[str, Any], folder: Path) -> Rope:
    """The config's rope.

    Raises:
        RpamError: It can't be read, or llama.cpp does not compute it for this architecture.
    """
    rope = read_rope(config, folder)
    if rope.kind not in architecture.ropes:
        raise RpamError(
            f"{folder / 'config.json'}: rope type {rope.kind!r} can't be exported for {architecture.model_type}; "
            f"llama.cpp computes {', '.join(sorted(architecture.ropes))} there."
        )
    return rope


def add_decoder(writer: gguf.GGUFWriter, architecture: Architecture, config: dict[str, Any], folder: Path) -> None:
    """Write the keys that llama.cpp's own converter writes for a dense decoder."""
    for key, method in DECODER_KEYS.items():
        getattr(writer, method)(config[key])
    rope_of(architecture, config, folder).add_to(writer)
    if isinstance(head_dim := config.get("head_dim"), int):
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    if architecture.vocabulary_keys:
        writer.add_vocab_size(config["vocab_size"])
        writer.add_rope_dimension_count(head_size(config))


def head_size(config: dict[str, Any]) -> int:
    """Values a head."""
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def rotary_heads(architecture: Architecture, name: str, config: dict[str, Any]) -> int | None:
    """Heads of a tensor whose rows must leave Hugging Face's rotary layout; None of any other tensor."""
    return next((int(config[key]) for end, key in architecture.rotary_heads if name.endswith(end)), None)


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
            raise RpamError(
                f"{folder}: tensor {name!r} has no place in a {config['model_type']} GGUF file; "
                "take it out of the checkpoint, or check `model_type` in config.json."
            )
        result[name] = gguf_name
    return result


def check_names(source: TensorSource, config: dict[str, Any], folder: Path) -> None:
    """Raise the error that the export would raise, before any work."""
    gguf_names(source.names(), config, folder)
    rope_of(architecture_of(config, folder), config, folder)
