"""W = S + lambda * (L - S), tensor by tensor, in fp32, rounded once."""

from __future__ import annotations

from collections.abc import Callable

import torch

from rpam_lite.checkpoint.arithmetic import interpolate
from rpam_lite.checkpoint.source import ParentSource


class MergedSource:
    """The merge of two checkpoints as a `TensorSource`: each tensor is computed when asked for.

    Args:
        long: The Long parent.
        short: The Short parent; same names and shapes (preflight has checked it).
        coefficient: Lambda by tensor name: one value, or one a row.
        dtype: What every merged tensor is rounded to, once.
    """

    def __init__(
        self,
        long: ParentSource,
        short: ParentSource,
        coefficient: Callable[[str], float | torch.Tensor],
        dtype: torch.dtype,
    ) -> None:
        self.long, self.short, self.coefficient, self.dtype = long, short, coefficient, dtype

    def names(self) -> list[str]:
        """Tensor names, sorted."""
        return list(self.long.names())

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor."""
        return self.long.shape(name)

    def get(self, name: str) -> torch.Tensor:
        """One merged tensor in `dtype`."""
        weight = self.coefficient(name)
        return interpolate(self.short.get(name), self.long.get(name), weight).to(self.dtype)

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Some rows of one merged tensor in `dtype`."""
        return self.exact_rows(name, start, stop).to(self.dtype)

    def exact_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Some rows of one merged tensor in fp32, before they are rounded."""
        weight = self.coefficient(name)
        if isinstance(weight, torch.Tensor) and weight.ndim:
            weight = weight[start:stop]
        return interpolate(self.short.rows(name, start, stop), self.long.rows(name, start, stop), weight)
