"""The activation store: hidden states by layer and micro-batch, on the device, in host memory or on disk.

Written in order, read in order or in reverse, and dropped a layer at a time as soon as the last
reader has passed.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Literal, Protocol

import torch

from rpam_lite.checkpoint.ranges import read_bytes, write_bytes
from rpam_lite.errors import RpamError
from rpam_lite.platform import allocate

StoreName = Literal["device", "host", "disk"]


class ActivationStore(Protocol):
    """Tensors by layer and micro-batch."""

    def put(self, layer: int, batch: int, states: torch.Tensor) -> None:
        """Keep a tensor."""
        ...

    def get(self, layer: int, batch: int) -> torch.Tensor:
        """Bring it to the device."""
        ...

    def drop(self, layer: int) -> None:
        """Forget a layer."""
        ...


class MemoryStore:
    """Keeps tensors where it is told to: on the device, or in host memory."""

    def __init__(self, kept_on: torch.device, device: torch.device) -> None:
        self._kept_on, self._device = kept_on, device
        self._states: dict[int, dict[int, torch.Tensor]] = {}

    def put(self, layer: int, batch: int, states: torch.Tensor) -> None:
        """Keep a tensor."""
        self._states.setdefault(layer, {})[batch] = states.detach().to(self._kept_on)

    def get(self, layer: int, batch: int) -> torch.Tensor:
        """Bring it to the device."""
        return self._states[layer][batch].to(self._device, non_blocking=True)

    def drop(self, layer: int) -> None:
        """Forget a layer."""
        self._states.pop(layer, None)


class DiskStore:
    """One file a layer, of its full size from the start, so that a full disk shows at once.

    Args:
        folder: Where the files go; those of an earlier run are overwritten.
        shapes: Of every micro-batch.
        dtype: Of all tensors.
        device: Where `get` delivers.
    """

    def __init__(
        self, folder: Path, shapes: Sequence[tuple[int, ...]], dtype: torch.dtype, device: torch.device
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._shapes, self._dtype, self._device = folder, shapes, dtype, device
        self._starts = [0]
        for shape in shapes:
            self._starts.append(self._starts[-1] + prod(shape) * dtype.itemsize)
        self._open: set[int] = set()

    def put(self, layer: int, batch: int, states: torch.Tensor) -> None:
        """Write a tensor.

        Raises:
            RpamError: The disk is full.
        """
        file = self._file(layer)
        if layer not in self._open:
            self._preallocate(file)
            self._open.add(layer)
        content = states.detach().to("cpu", self._dtype).contiguous()
        with file.open("r+b", buffering=0) as stream:
            write_bytes(stream, self._starts[batch], content)

    def get(self, layer: int, batch: int) -> torch.Tensor:
        """Read it to the device."""
        shape = self._shapes[batch]
        out = torch.empty(prod(shape) * self._dtype.itemsize, dtype=torch.uint8)
        read_bytes(self._file(layer), self._starts[batch], out)
        return out.view(self._dtype).view(shape).to(self._device)

    def drop(self, layer: int) -> None:
        """Remove the layer's file."""
        self._open.discard(layer)
        self._file(layer).unlink(missing_ok=True)

    def _file(self, layer: int) -> Path:
        return self._folder / f"states-{layer:03}.bin"

    def _preallocate(self, file: Path) -> None:
        with file.open("wb") as stream:
            try:
                allocate(stream, max(1, self._starts[-1]))
            except OSError as error:
                stream.close()
                file.unlink(missing_ok=True)
                raise RpamError(
                    f"{file}: {self._starts[-1]} bytes of hidden states don't fit ({error.strerror}); free some space, "
                    "or keep fewer positions or questions under `capture` in the recipe."
                ) from None


def open_store(
    kind: StoreName, folder: Path, shapes: Sequence[tuple[int, ...]], dtype: torch.dtype, device: torch.device
) -> ActivationStore:
    """The store of this kind; `folder` is used by `disk` only."""
    if kind == "disk":
        return DiskStore(folder, shapes, dtype, device)
    return MemoryStore(device if kind == "device" else torch.device("cpu"), device)
