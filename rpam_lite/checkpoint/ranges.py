"""Bytes of single tensors inside safetensors files, read at their offsets into a given buffer.

`safe_open` maps files into memory, which counts as used memory and can't fill a buffer of ours;
`preadv` does neither.
"""

from __future__ import annotations

import json
import os
import struct
from dataclasses import dataclass
from pathlib import Path

import torch

from rpam_lite.errors import RpamError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class Extent:
    """Where a tensor's bytes lie, and what they are."""

    file: Path
    offset: int
    size: int
    dtype: torch.dtype
    shape: tuple[int, ...]


def read_header(file: Path) -> dict[str, Extent]:
    """Extents of all tensors of a safetensors file.

    The format: 8 bytes with the header's length, the header as JSON, then the tensors' bytes.

    Raises:
        RpamError: A tensor has a type that we don't know.
    """
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
    extents = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in DTYPES:
            raise RpamError(f"{file}: tensor {name} has the type {entry['dtype']}, which can't be merged.")
        start, stop = entry["data_offsets"]
        extents[name] = Extent(file, 8 + length + start, stop - start, DTYPES[entry["dtype"]], tuple(entry["shape"]))
    return extents


def read_bytes(file: Path, offset: int, out: torch.Tensor) -> None:
    """Fill `out`, uint8 [bytes] on the CPU, from `offset` of `file`.

    Raises:
        RpamError: The file ends too early.
    """
    buffer = byte_view(out)
    descriptor = os.open(file, os.O_RDONLY)
    try:
        while buffer:
            count = os.preadv(descriptor, [buffer], offset)
            if count == 0:
                raise RpamError(f"{file}: ends at byte {offset}, {len(buffer)} too early; copy or download it again.")
            buffer, offset = buffer[count:], offset + count
    finally:
        os.close(descriptor)


def byte_view(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, not copied."""
    return memoryview(tensor.view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]


def read_rows(extent: Extent, start: int, stop: int) -> torch.Tensor:
    """Rows `start` to `stop` of a tensor of at least one dimension."""
    row = extent.size // extent.shape[0]
    out = torch.empty((stop - start) * row, dtype=torch.uint8)
    read_bytes(extent.file, extent.offset + start * row, out)
    return out.view(extent.dtype).view(stop - start, *extent.shape[1:])
