"""Where every byte of a checkpoint will lie, known before any is written."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

_CODE_OF = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Chunk:
    """Some rows of a tensor, and their place.

    Attributes:
        file: Name of the file.
        tensor: Name of the tensor.
        start: First row (element, of a tensor with one dimension).
        stop: Last row + 1.
        offset: First byte in the file.
        size: Bytes.
    """

    file: str
    tensor: str
    start: int
    stop: int
    offset: int
    size: int


@dataclass(frozen=True)
class Shard:
    """One safetensors file: its name, its first bytes up to the tensors', its size, and where its tensors start."""

    file: str
    head: bytes
    size: int
    offsets: dict[str, int]


def plan_shards(shapes: Mapping[str, Sequence[int]], dtype: torch.dtype, limit: int) -> list[Shard]:
    """Tensors in their order, in files of at most `limit` bytes of weights (or one tensor)."""
    groups: list[list[str]] = []
    room = 0
    for name, shape in shapes.items():
        size = prod(shape) * dtype.itemsize
        if not groups or size > room:
            groups.append([])
            room = limit
        groups[-1].append(name)
        room -= size
    files = [f"model-{i + 1:05}-of-{len(groups):05}.safetensors" for i in range(len(groups))]
    if len(groups) == 1:
        files = [WEIGHTS]
    return [_shard(file, {n: shapes[n] for n in names}, dtype) for file, names in zip(files, groups, strict=True)]


def _shard(file: str, shapes: Mapping[str, Sequence[int]], dtype: torch.dtype) -> Shard:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    starts, position = {}, 0
    for name, shape in shapes.items():
        starts[name], end = position, position + prod(shape) * dtype.itemsize
        header[name] = {"dtype": _CODE_OF[dtype], "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    return Shard(file, head, len(head) + position, {name: len(head) + start for name, start in starts.items()})


def plan_chunks(
    shards: Sequence[Shard], shapes: Mapping[str, Sequence[int]], dtype: torch.dtype, values: int
) -> list[Chunk]:
    """All tensors in pieces of whole rows, of at most `values` values (or one row), in the order of the files."""
    chunks = []
    for shard in shards:
        for name, offset in shard.offsets.items():
            rows, row = _rows(shapes[name])
            step = max(1, values // max(1, row))
            for start in range(0, rows, step):
                stop = min(start + step, rows)
                at, size = offset + start * row * dtype.itemsize, (stop - start) * row * dtype.itemsize
                chunks.append(Chunk(shard.file, name, start, stop, at, size))
    return chunks


def _rows(shape: Sequence[int]) -> tuple[int, int]:
    """Rows of a tensor, and values a row."""
    return (shape[0], prod(shape[1:])) if shape else (1, 1)


def weight_index(shards: Sequence[Shard], shapes: Mapping[str, Sequence[int]], dtype: torch.dtype) -> dict[str, Any]:
    """Contents of model.safetensors.index.json."""
    total = sum(prod(shape) for shape in shapes.values()) * dtype.itemsize
    weight_map = {name: shard.file for shard in shards for name in shard.offsets}
    return {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
