"""Both parents' decoder layers as (S, D = L - S), one at a time, from wherever they are kept.

A layer is one flat buffer of bytes; `Pair`s are views into it. Where the buffers live is the
residency:

    device  all layers on the device, encoded once
    host    all layers in host memory, encoded once; copied to the device as they are needed
    disk    read for every sweep: the exact codec from the checkpoints themselves, another one from
            a scratch file that is written once

On a CUDA device a reader thread fills page-locked slots and copies them on a stream of its own,
one layer ahead of the computation. On the CPU the same thread reads ahead from the disk.
"""

from __future__ import annotations

import json
import warnings
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, Literal

import torch

from rpam_lite.checkpoint.files import whole_file, write_text
from rpam_lite.checkpoint.ranges import byte_view, read_bytes
from rpam_lite.checkpoint.source import ParentSource
from rpam_lite.device import use_in_this_thread
from rpam_lite.errors import RpamError
from rpam_lite.recipe.fitting import CodecName
from rpam_lite.streaming.codec import Pair, codec_error, codec_of, encode, layout
from rpam_lite.streaming.skeleton import Skeleton

Residency = Literal["device", "host", "disk"]
LayerPairs = dict[str, Pair]
_ALIGNMENT = 256
SLOTS = 2


@dataclass(frozen=True)
class _Piece:
    """One encoded piece of one tensor, and where it lies in its layer's buffer."""

    tensor: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int

    @property
    def size(self) -> int:
        return prod(self.shape) * self.dtype.itemsize

    def view(self, buffer: torch.Tensor) -> torch.Tensor:
        return buffer[self.offset : self.offset + self.size].view(self.dtype).view(self.shape)


class WeightSource:
    """The decoder layers of two parents.

    Args:
        long: The Long parent.
        short: The Short parent, of the same names and shapes.
        skeleton: The architecture.
        codec: How both are held.
        residency: Where.
        device: Where `layer` delivers.
        scratch: Folder for the encoded layers; needed for `disk` with a codec other than exact.

    Raises:
        RpamError: No scratch folder where one is needed.
    """

    def __init__(
        self,
        long: ParentSource,
        short: ParentSource,
        skeleton: Skeleton,
        codec: CodecName = "exact",
        residency: Residency = "disk",
        device: torch.device | str = "cpu",
        scratch: Path | None = None,
    ) -> None:
        self.long, self.short, self.skeleton, self.codec = long, short, skeleton, codec
        self.device = torch.device(device)
        # bitsandbytes and float64 norms, which Apple's GPU lacks.
        self._encodes_on = self.device if self.device.type == "cuda" else torch.device("cpu")
        self._pieces = [self._plan(i) for i in range(skeleton.layers)]
        self._sizes = [pieces[-1].offset + pieces[-1].size for pieces in self._pieces]
        # Squared norms of the error of S and D and of D itself, for every layer that was encoded here.
        self._errors: dict[int, tuple[float, float]] = {}
        self._buffers: list[torch.Tensor] = []
        self._scratch: Path | None = None
        direct = codec == "exact" and long.as_stored and short.as_stored
        if residency != "disk":
            kept_on = self.device if residency == "device" else torch.device("cpu")
            self._buffers = [self._filled(i).to(kept_on) for i in range(skeleton.layers)]
        elif not direct:
            if scratch is None:
                raise RpamError(f"`{codec}` layers kept on disk need a scratch folder.")
            self._scratch = scratch / f"layers-{codec}.bin"
            if self._scratch.exists():
                self._errors = dict(
                    enumerate(json.loads(self._scratch.with_suffix(".json").read_text(encoding="utf-8")))
                )
            else:
                self._write_scratch(self._scratch)
        self._slots: list[_Slot] = []

    @property
    def layer_bytes(self) -> int:
        """Bytes of the largest encoded layer."""
        return max(self._sizes)

    def codec_error(self, layer: int) -> float:
        """Error of the decoded S and D together relative to ||D||."""
        if self.codec == "exact":
            return 0.0
        error, norm = self._errors[layer]
        return float((error / max(norm, 1e-30)) ** 0.5)

    def layer(self, layer: int) -> LayerPairs:
        """One layer: its tensors by their names within the layer."""
        if self._buffers and self._buffers[layer].device == self.device:
            return self._views(layer, self._buffers[layer])
        return self._views(layer, self._filled(layer).to(self.device))

    def sweep(self, order: Sequence[int]) -> Iterator[tuple[int, LayerPairs]]:
        """Layers in this order, the next ones being fetched while one is in use.

        A layer's tensors are valid until the next one is asked for.
        """
        if self._buffers and self._buffers[0].device == self.device:
            for layer in order:
                yield layer, self._views(layer, self._buffers[layer])
            return
        if not self._slots:
            self._slots = [_Slot(self.layer_bytes, self.device) for _ in range(SLOTS)]
        with ThreadPoolExecutor(1, "layers", partial(use_in_this_thread, self.device)) as reader:
            waiting: deque[tuple[int, _Slot, Future[torch.Tensor]]] = deque()
            coming = iter(order)

            def fetch(slot: _Slot) -> None:
                layer = next(coming, None)
                if layer is not None:
                    waiting.append((layer, slot, reader.submit(slot.fetch, self, layer)))

            for slot in self._slots:
                fetch(slot)
            while waiting:
                layer, slot, future = waiting.popleft()
                buffer = future.result()
                slot.before_use()
                try:
                    yield layer, self._views(layer, buffer)
                finally:
                    slot.after_use()
                fetch(slot)

    def fill(self, layer: int, buffer: torch.Tensor) -> None:
        """Bring one encoded layer into `buffer`, uint8 on the CPU."""
        size = self._sizes[layer]
        if self._buffers:
            buffer[:size].copy_(self._buffers[layer])
        elif self._scratch is not None:
            read_bytes(self._scratch, sum(self._sizes[:layer]), buffer[:size])
        else:
            self._encode_into(layer, buffer)

    def size(self, layer: int) -> int:
        """Bytes of one encoded layer."""
        return self._sizes[layer]

    def _plan(self, layer: int) -> list[_Piece]:
        pieces, offset = [], 0
        for tensor, shape in self.skeleton.layer_tensors(layer).items():
            name = self.skeleton.checkpoint_name(layer, tensor)
            parts = layout(codec_of(self.codec, shape), shape, self.short.dtype(name), self.long.dtype(name))
            for dtype, part_shape in parts:
                pieces.append(_Piece(tensor, dtype, part_shape, offset))
                offset += -(-pieces[-1].size // _ALIGNMENT) * _ALIGNMENT
        return pieces

    def _views(self, layer: int, buffer: torch.Tensor) -> LayerPairs:
        parts: dict[str, list[torch.Tensor]] = {}
        for piece in self._pieces[layer]:
            parts.setdefault(piece.tensor, []).append(piece.view(buffer))
        shapes = self.skeleton.layer_tensors(layer)
        return {name: Pair(codec_of(self.codec, shapes[name]), shapes[name], found) for name, found in parts.items()}

    def _filled(self, layer: int) -> torch.Tensor:
        buffer = torch.empty(self._sizes[layer], dtype=torch.uint8)
        self.fill(layer, buffer)
        return buffer

    def _encode_into(self, layer: int, buffer: torch.Tensor) -> None:
        error = norm = 0.0
        for tensor, pair in self._views(layer, buffer).items():
            name = self.skeleton.checkpoint_name(layer, tensor)
            if pair.codec == "exact":
                self.short.read_into(name, pair.parts[0])
                self.long.read_into(name, pair.parts[1])
                continue
            short, long = (parent.get(name).to(self._encodes_on) for parent in (self.short, self.long))
            encoded = Pair(pair.codec, pair.shape, encode(pair.codec, short, long))
            for part, value in zip(pair.parts, encoded.parts, strict=True):
                part.copy_(value)
            own = codec_error(encoded, short, long)
            error, norm = error + own[0], norm + own[1]
        self._errors[layer] = (error, norm)

    def _write_scratch(self, file: Path) -> None:
        # The errors are complete before the layers get their name.
        with whole_file(file) as part, part.open("wb") as stream:
            for layer in range(self.skeleton.layers):
                buffer = torch.zeros(self._sizes[layer], dtype=torch.uint8)
                self._encode_into(layer, buffer)
                stream.write(byte_view(buffer))
            write_text(file.with_suffix(".json"), json.dumps([self._errors[i] for i in range(self.skeleton.layers)]))


class _Slot:
    """One layer on its way: a host buffer, and on CUDA its page-locked twin on the device."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.host = torch.empty(size, dtype=torch.uint8)
        self.cuda = device.type == "cuda"
        self.device_buffer = self.host
        if self.cuda:
            # Registered rather than allocated pinned: that would round the size up to a power of two.
            cudart = torch.cuda.cudart()  # type: ignore[no-untyped-call]
            locked = int(cudart.cudaHostRegister(self.host.data_ptr(), size, 0)) == 0
            if not locked:
                message = "the layers' buffers can't be page-locked: copies will not hide behind the work"
                warnings.warn(message, stacklevel=2)
                with suppress(RuntimeError):
                    torch.zeros(1, device=device)  # the next kernel would raise the failure as its own
            self.device_buffer = torch.empty(size, dtype=torch.uint8, device=device)
            self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self.copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self.used = torch.cuda.Event()  # type: ignore[no-untyped-call]
            # The buffer's memory may have been another tensor's, which queued kernels still read.
            self.used.record(torch.cuda.current_stream(device))
            # Also where the interpreter ends; the host buffer lives until then.
            if locked:
                weakref.finalize(self, _unregister, cudart, self.host, self.copied)

    def fetch(self, source: WeightSource, layer: int) -> torch.Tensor:
        """Fill the slot; runs in the reader thread."""
        size = source.size(layer)
        if self.cuda:
            self.copied.synchronize()  # the host buffer may still be on its way to the device
        source.fill(layer, self.host)
        with torch.cuda.stream(self.stream) if self.cuda else nullcontext():
            if self.cuda:
                self.stream.wait_event(self.used)
                self.device_buffer[:size].copy_(self.host[:size], non_blocking=True)
                self.copied.record(self.stream)
        return self.device_buffer[:size]

    def before_use(self) -> None:
        """Let the computation wait until the copy has arrived."""
        if self.cuda:
            torch.cuda.current_stream(self.device_buffer.device).wait_event(self.copied)

    def after_use(self) -> None:
        """Let the next copy wait until the computation is through with this one."""
        if self.cuda:
            self.used.record(torch.cuda.current_stream(self.device_buffer.device))


def _unregister(cudart: Any, host: torch.Tensor, copied: Any) -> None:
    """Unlock a slot's pages once no copy reads them."""
    copied.synchronize()
    cudart.cudaHostUnregister(host.data_ptr())
