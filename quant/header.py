"""The header of a GGUF file: plain values and tensors.

The gguf package's reader takes half a minute over the merges of a real vocabulary; this one skips arrays.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import BinaryIO

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from rpam_lite.errors import RpamError

Value = int | float | bool | str
_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_ALIGNMENT = 32


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a GGUF file.

    Attributes:
        name: Its name.
        shape: As GGUF says it: values a row first.
        kind: Its type.
        offset: Where its bytes begin in the file.
    """

    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    offset: int

    @property
    def size(self) -> int:
        """Bytes."""
        values, size = GGML_QUANT_SIZES[self.kind]
        return int(prod(self.shape) // values * size)

    @property
    def is_matrix_of_layer(self) -> bool:
        """Whether llama.cpp quantizes it with an importance matrix."""
        return len(self.shape) == 2 and self.name.startswith("blk.") and self.name.endswith(".weight")


@dataclass(frozen=True)
class Header:
    """What the file says of itself: all values that are no arrays, and its tensors."""

    values: dict[str, Value]
    tensors: list[TensorInfo]

    def number(self, key: str) -> int:
        """A whole number under `{architecture}.key`."""
        return int(self.values[f"{self.values['general.architecture']}.{key}"])


def read_header(file: Path) -> Header:
    """Read the header.

    Raises:
        RpamError: The file is missing, is no GGUF file, or is cut short.
    """
    try:
        with file.open("rb") as stream:
            if stream.read(4) != b"GGUF":
                raise RpamError(f"{file}: is no GGUF file; name one that ends in .gguf, or write it again.")
            stream.seek(8)
            tensors, values = _number(stream, "Q"), _number(stream, "Q")
            found = dict(_entry(stream) for _ in range(values))
            named = {key: value for key, value in found.items() if value is not None}
            infos = [_tensor(stream) for _ in range(tensors)]
            align = int(named.get("general.alignment", _ALIGNMENT))
            begin = -(-stream.tell() // align) * align
            return Header(named, [replace(info, offset=begin + info.offset) for info in infos])
    except FileNotFoundError:
        raise RpamError(f"{file}: no such GGUF file; check the path.") from None
    except (struct.error, ValueError, KeyError) as error:
        raise RpamError(f"{file}: its header can't be read ({error}); write the file again.") from None


def _number(stream: BinaryIO, form: str) -> int:
    (value,) = struct.unpack(f"<{form}", stream.read(struct.calcsize(f"<{form}")))
    return int(value)


def _string(stream: BinaryIO) -> str:
    return stream.read(_number(stream, "Q")).decode("utf-8")


def _entry(stream: BinaryIO) -> tuple[str, Value | None]:
    key, kind = _string(stream), _number(stream, "I")
    if kind == _STRING:
        return key, _string(stream)
    if kind != _ARRAY:
        form = f"<{_FORMATS[kind]}"
        (value,) = struct.unpack(form, stream.read(struct.calcsize(form)))
        return key, value
    kind, count = _number(stream, "I"), _number(stream, "Q")
    if kind != _STRING:
        stream.seek(count * struct.calcsize(f"<{_FORMATS[kind]}"), 1)
        return key, None
    for _ in range(count):
        stream.seek(_number(stream, "Q"), 1)
    return key, None


def _tensor(stream: BinaryIO) -> TensorInfo:
    name = _string(stream)
    shape = tuple(_number(stream, "Q") for _ in range(_number(stream, "I")))
    kind = GGMLQuantizationType(_number(stream, "I"))
    return TensorInfo(name, shape, kind, _number(stream, "Q"))
