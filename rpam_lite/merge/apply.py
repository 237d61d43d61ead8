"""The merge as a tensor source: each tensor is computed when asked for, in fp32, and rounded once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from threading import Lock
from typing import Protocol

import torch

from rpam_lite.checkpoint.arithmetic import Lambda, interpolate, interpolate_rounded, rows_of
from rpam_lite.checkpoint.source import ParentSource, TensorSource
from rpam_lite.merge.methods import MergeMethod
from rpam_lite.merge.models import Tensors


class ExactSource(TensorSource, Protocol):
    """A source that also gives its values before they were rounded."""

    @property
    def dtype(self) -> torch.dtype:
        """What every tensor is rounded to."""
        ...

    def exact_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Some rows of one tensor in fp32."""
        ...


class MergedSource:
    """W = S + lambda * (L - S).

    Args:
        long: The Long parent.
        short: The Short parent; same names and shapes (preflight has checked it).
        coefficient: Lambda by tensor name: one value, one a row, or one a weight.
        dtype: What every merged tensor is rounded to, once.
        device: Where the arithmetic is done; the bits are the same.
    """

    whole = False  # tensors may be computed some rows at a time

    def __init__(
        self,
        long: ParentSource,
        short: ParentSource,
        coefficient: Callable[[str], Lambda],
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        self.long, self.short, self.coefficient, self.dtype = long, short, coefficient, dtype
        self.device = torch.device(device)

    def names(self) -> list[str]:
        """Tensor names, sorted."""
        return list(self.long.names())

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor."""
        return self.long.shape(name)

    def get(self, name: str) -> torch.Tensor:
        """One merged tensor in `dtype`."""
        return self.rows(name, 0, self.shape(name)[0])

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Some rows of one merged tensor in `dtype`."""
        if self.device.type == "cpu":
            return interpolate_rounded(*self._parts(name, start, stop), self.dtype)
        return self._interpolated(name, start, stop).to(self.dtype).cpu()

    def exact_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Some rows of one merged tensor in fp32, before they are rounded."""
        return self._interpolated(name, start, stop).cpu()

    def _interpolated(self, name: str, start: int, stop: int) -> torch.Tensor:
        short, long, weight = self._parts(name, start, stop)
        weight = weight if isinstance(weight, float) else weight.to(self.device)
        return interpolate(short.to(self.device), long.to(self.device), weight)

    def _parts(self, name: str, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor, Lambda]:
        weight = rows_of(self.coefficient(name), slice(start, stop))
        return self.short.rows(name, start, stop), self.long.rows(name, start, stop), weight


class MethodSource:
    """The merge by one of the methods beside ours.

    Args:
        method: The method.
        options: All of its options.
        long: The Long parent.
        short: The Short parent.
        base: Their common base, if the method needs it.
        seed: The recipe's.
        dtype: What every merged tensor is rounded to, once.
        statistics: What the method measured, by tensor name.
        device: Where the arithmetic is done.
    """

    def __init__(
        self,
        method: MergeMethod,
        options: Mapping[str, float],
        long: ParentSource,
        short: ParentSource,
        base: ParentSource | None,
        seed: int,
        dtype: torch.dtype,
        statistics: Mapping[str, torch.Tensor] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.method, self.options, self.statistics = method, options, statistics or {}
        self.device = torch.device(device)
        self.long, self.short, self.base, self.seed, self.dtype = long, short, base, seed, dtype
        self.whole = method.whole
        # The random numbers of torch belong to the process; and verification asks for one tensor several times.
        self._lock = Lock()
        self._last: tuple[str, torch.Tensor] | None = None

    def names(self) -> list[str]:
        """Tensor names, sorted."""
        return list(self.long.names())

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor."""
        return self.long.shape(name)

    def get(self, name: str) -> torch.Tensor:
        """One merged tensor in `dtype`."""
        return self._exact(name).to(self.dtype)

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Some rows of one merged tensor in `dtype`."""
        return self.exact_rows(name, start, stop).to(self.dtype)

    def exact_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Some rows of one merged tensor in fp32, before they are rounded."""
        if self.whole:
            return self._exact(name)[start:stop]
        return self._merge(name, lambda source: source.rows(name, start, stop))

    def _merge(self, name: str, read: Callable[[ParentSource], torch.Tensor]) -> torch.Tensor:
        long, short, base = (
            read(source).to(self.device).float() if source is not None else None
            for source in (self.long, self.short, self.base)
        )
        assert long is not None
        assert short is not None
        measured = self.statistics.get(name)
        statistic = measured.to(self.device) if measured is not None else None
        merged = self.method.merge(Tensors(name, long, short, base, statistic, self._seed_of(name)), self.options)
        return merged.cpu()

    def _seed_of(self, name: str) -> int:
        return int.from_bytes(hashlib.sha256(f"{self.seed} {name}".encode()).digest()[:7], "big")

    def _exact(self, name: str) -> torch.Tensor:
        with self._lock:
            if self._last is None or self._last[0] != name:
                self._last = None
                with _one_thread():
                    self._last = name, self._merge(name, lambda source: source.get(name))
            return self._last[1]


@contextmanager
def _one_thread() -> Iterator[None]:
    """Matrix products on more threads have other last bits, which a verification on other threads would find."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
