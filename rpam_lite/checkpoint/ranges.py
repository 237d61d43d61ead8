"""Bytes of single tensors inside safetensors files, read at their offsets into a given buffer.

`safe_open` maps files into memory, which counts as used memory and can't fill a buffer of ours;
an unbuffered file does neither.
"""

from __future__ import annotations

import json
import os
import struct
from dataclasses import dataclass
from io import FileIO
from math import prod
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
MAX_HEADER = 100_000_000  # the safetensors library's own limit


@dataclass(frozen=True)
class Extent:
    """Where a tensor's bytes lie, and what they are."""

    file: Path
    offset: int
    size: int
    dtype: torch.dtype
    shape: tuple[int, ...]


def read_header(file: Path) -> dict[str, Extent]:
    """Extents of all tensors of a safetensors file, none of them read.

    The format: 8 bytes with the header's length, the header as JSON, then the tensors' bytes, without
    gaps. A header that says anything else is refused before a byte is taken from a wrong place.

    Raises:
        RpamError: The file is missing or damaged, or a tensor has a type that we don't know.
    """
    try:
        with file.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            first = stream.read(8)
            length = struct.unpack("<Q", first)[0] if len(first) == 8 else -1
            if not 2 <= length <= min(size - 8, MAX_HEADER):
                raise RpamError(_damaged(file, size, "it ends inside its header, or has none"))
            header = json.loads(stream.read(length), object_pairs_hook=_no_duplicates)
    except FileNotFoundError:
        raise RpamError(f"{file}: is named by the shard index and missing; download it again.") from None
    except (ValueError, RecursionError) as error:
        raise RpamError(_damaged(file, size, f"its header is no JSON: {error}")) from None
    if not isinstance(header, dict):
        raise RpamError(_damaged(file, size, "its header is no JSON object"))
    header.pop("__metadata__", None)
    extents = {name: _extent(file, size, name, entry, 8 + length) for name, entry in header.items()}
    end = 8 + length
    for extent in sorted(extents.values(), key=lambda e: (e.offset, e.size)):
        if extent.offset != end:
            found = "overlap" if extent.offset < end else "leave a gap"
            raise RpamError(_damaged(file, size, f"the bytes of its tensors {found} at {extent.offset}"))
        end += extent.size
    if end != size:
        raise RpamError(_damaged(file, size, f"its header promises {end} bytes"))
    return extents


def _extent(file: Path, size: int, name: str, entry: object, start_of_data: int) -> Extent:
    """One entry of a header, checked."""
    try:
        kind, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]  # type: ignore[index]
        numbers = [*shape, start, stop]
    except (TypeError, KeyError, ValueError):
        raise RpamError(_damaged(file, size, f"its header describes {name!r} wrongly")) from None
    if not all(type(n) is int and n >= 0 for n in numbers) or not isinstance(kind, str):
        raise RpamError(_damaged(file, size, f"its header describes {name!r} wrongly"))
    if kind not in DTYPES:
        raise RpamError(
            f"{file}: tensor {name} has the type {kind}, which can't be merged; save the checkpoint in bfloat16."
        )
    if stop - start != prod(shape) * DTYPES[kind].itemsize:
        raise RpamError(_damaged(file, size, f"{name!r} of shape {tuple(shape)} has {stop - start} bytes"))
    return Extent(file, start_of_data + start, stop - start, DTYPES[kind], tuple(shape))


def _no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands there twice")
    return found


def _damaged(file: Path, size: int, why: str) -> str:
    return f"{file}: is no whole safetensors file ({size} bytes; {why}); copy or download it again."


def read_bytes(file: Path, offset: int, out: torch.Tensor) -> None:
    """Fill `out`, uint8 [bytes] on the CPU, from `offset` of `file`.

    Raises:
        RpamError: The file ends too early.
    """
    buffer = byte_view(out)
    with file.open("rb", buffering=0) as stream:
        stream.seek(offset)
        while buffer:
            count = stream.readinto(buffer) or 0
            if count == 0:
                raise RpamError(f"{file}: ends at byte {offset}, {len(buffer)} too early; copy or download it again.")
            buffer, offset = buffer[count:], offset + count


def write_bytes(stream: FileIO, offset: int, tensor: torch.Tensor) -> None:
    """Write a contiguous CPU tensor at `offset` of an unbuffered file; one call may take a part of it only."""
    buffer = byte_view(tensor)
    stream.seek(offset)
    while buffer:
        buffer = buffer[stream.write(buffer) :]


def byte_view(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, not copied."""
    return memoryview(tensor.view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]


def read_tensor(extent: Extent) -> torch.Tensor:
    """One whole tensor."""
    out = torch.empty(extent.size, dtype=torch.uint8)
    read_bytes(extent.file, extent.offset, out)
    return out.view(extent.dtype).view(extent.shape)


def read_rows(extent: Extent, start: int, stop: int) -> torch.Tensor:
    """Rows `start` to `stop` of a tensor of at least one dimension."""
    row = extent.size // extent.shape[0]
    out = torch.empty((stop - start) * row, dtype=torch.uint8)
    read_bytes(extent.file, extent.offset + start * row, out)
    return out.view(extent.dtype).view(stop - start, *extent.shape[1:])
