"""A PEFT LoRA adapter as a GGUF adapter, which llama.cpp loads beside a base file (`--lora`, `lora_path`).

llama.cpp applies pairs of matrices only: norms that the adapter keeps whole are left out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import torch

from export.gguf.architecture import architecture_of, gguf_names, rotary_heads
from export.gguf.write import leave_rotary_layout
from rpam_lite.checkpoint.files import (
    ADAPTER_CONFIG,
    ADAPTER_PREFIX,
    ADAPTER_WEIGHTS,
    load_tensors,
    read_json,
    whole_file,
)
from rpam_lite.errors import RpamError


def write_adapter_gguf(folder: Path, config: dict[str, Any], base: Path, path: Path) -> int:
    """Write the adapter of a folder as GGUF, F16.

    Args:
        folder: adapter_config.json and adapter_model.safetensors.
        config: Contents of the base's config.json.
        base: The base's folder, for errors.
        path: Final name; absent until the file is whole.

    Returns:
        How many norms were left out.

    Raises:
        RpamError: Unknown architecture, or a tensor that has no place in it.
    """
    settings = read_json(folder / ADAPTER_CONFIG, "the adapter's config")
    tensors = load_tensors(folder / ADAPTER_WEIGHTS, "write the adapter again")
    architecture = architecture_of(config, base)
    down = {n.removeprefix(ADAPTER_PREFIX).replace(".lora_A.", "."): t for n, t in tensors.items() if ".lora_A." in n}
    up = {n.removeprefix(ADAPTER_PREFIX).replace(".lora_B.", "."): t for n, t in tensors.items() if ".lora_B." in n}
    if not down or down.keys() != up.keys():
        raise RpamError(f"{folder}: holds no LoRA pairs, or one without its other half; write the adapter again.")
    name_of = gguf_names(sorted(down), config, base)
    with whole_file(path) as part:
        writer = gguf.GGUFWriter(part, gguf.MODEL_ARCH_NAMES[architecture.arch])
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(settings["lora_alpha"]))
        for name in sorted(down):
            heads = rotary_heads(architecture, name, config)
            rows = up[name] if heads is None else leave_rotary_layout(up[name], heads)
            for half, tensor in (("lora_a", down[name]), ("lora_b", rows)):
                writer.add_tensor(f"{name_of[name]}.{half}", tensor.to(torch.float16).contiguous().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return len(tensors) - 2 * len(down)
