"""Write a checkpoint folder tensor by tensor: no more than one tensor is in memory at a time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from rpam_lite.checkpoint.files import whole_folder
from rpam_lite.checkpoint.source import TensorSource
from rpam_lite.errors import RpamError

# Copied byte for byte from the donor: re-saving a tokenizer changes it from release to release.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
)
_CODE_OF = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def write_checkpoint(
    source: TensorSource,
    config: dict[str, Any],
    donor: Path,
    folder: Path,
    dtype: torch.dtype,
    on_tensor: Callable[[str], None] = lambda name: None,
) -> None:
    """Write config.json, model.safetensors and the donor's tokenizer files into `folder`.

    Args:
        source: Tensors, each rounded by the source itself to `dtype`.
        config: Contents of config.json.
        donor: Checkpoint folder whose tokenizer and generation files are copied byte for byte.
        folder: Final name; absent until everything is written.
        dtype: float16, bfloat16 or float32.
        on_tensor: Called with each name after it is written.

    Raises:
        RpamError: A tensor holds inf or NaN; the message names it.
    """
    with whole_folder(folder) as part:
        (part / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        for name in TOKENIZER_FILES:
            if (donor / name).exists():
                shutil.copyfile(donor / name, part / name)
        write_safetensors(source, part / "model.safetensors", dtype, on_tensor)


def write_safetensors(
    source: TensorSource,
    path: Path,
    dtype: torch.dtype,
    on_tensor: Callable[[str], None] = lambda name: None,
) -> None:
    """Write all of `source` as one safetensors file: the final header first, then tensor by tensor."""
    size = torch.empty((), dtype=dtype).element_size()
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in source.names():
        shape = source.shape(name)
        length = torch.Size(shape).numel() * size
        header[name] = {"dtype": _CODE_OF[dtype], "shape": shape, "data_offsets": [offset, offset + length]}
        offset += length
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    with path.open("wb") as stream:
        stream.write(len(head).to_bytes(8, "little") + head)
        for name in source.names():
            tensor = source.get(name).to(dtype).contiguous()
            if not torch.isfinite(tensor).all():
                raise RpamError(
                    f"{name}: holds inf or NaN as {dtype}; "
                    "if the parents are finite, set `merge: {dtype: bfloat16}` in the recipe."
                )
            stream.write(tensor.view(torch.uint8).numpy().data)
            on_tensor(name)
