"""The one formula that everything here turns on."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

_BLOCK = 1 << 19


@dataclass(frozen=True)
class LowRank:
    """One lambda a weight of a matrix, as a field of low rank kept in a box.

        lambda(r, c) = base + sum over k of rows[k, r] * columns[k, c], cut off at lower and upper

    Attributes:
        base: What all weights share, a scalar.
        rows: One factor of each product [rank, rows], of the same type.
        columns: The other one [rank, columns].
        lower: Least lambda.
        upper: Largest lambda.
    """

    base: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor
    lower: float
    upper: float

    def __getitem__(self, rows: slice) -> LowRank:
        """The field of some rows."""
        return replace(self, rows=self.rows[:, rows])

    def to(self, device: torch.device) -> LowRank:
        """The same on another device."""
        return replace(self, base=self.base.to(device), rows=self.rows.to(device), columns=self.columns.to(device))

    def unbounded(self) -> torch.Tensor:
        """The field before it is cut off [rows, columns]."""
        # Product by product, each rounded by itself: a matrix product would give other bits for other blocks of rows.
        field = self.base.expand(self.rows.shape[1], self.columns.shape[1]).clone()
        for row, column in zip(self.rows, self.columns, strict=True):
            field.add_(torch.outer(row, column))
        return field

    def dense(self) -> torch.Tensor:
        """Lambda of every weight [rows, columns]."""
        return self.unbounded().clamp_(self.lower, self.upper)


Lambda = float | torch.Tensor | LowRank  # of a tensor: one value, one a row, one a weight


def interpolate(short: torch.Tensor, long: torch.Tensor, weight: Lambda) -> torch.Tensor:
    """S + weight * (L - S) in fp32.

    Args:
        short: The Short parent's tensor.
        long: The Long parent's, of the same shape.
        weight: Lambda, that of the Long parent.
    """
    s = short.float()
    # A copy even of an fp32 tensor: it is worked on in place.
    return long.to(torch.float32, copy=True).sub_(s).mul_(broadcast(weight, s.ndim)).add_(s)


def interpolate_rounded(short: torch.Tensor, long: torch.Tensor, weight: Lambda, dtype: torch.dtype) -> torch.Tensor:
    """`interpolate`, rounded once to `dtype`: the same bits, a cache's worth of rows at a time.

    Args:
        short: The Short parent's rows; at least one dimension.
        long: The Long parent's, of the same shape.
        weight: As in `interpolate`, for these rows.
        dtype: Of the result.
    """
    rows, out = len(short), torch.empty(short.shape, dtype=dtype)
    step = max(1, _BLOCK // max(1, short[:1].numel()))
    s, d = (torch.empty(min(step, rows), *short.shape[1:]) for _ in range(2))
    for start in range(0, rows, step):
        here = slice(start, min(start + step, rows))
        count = here.stop - start
        own = rows_of(weight, here)
        s[:count].copy_(short[here])
        d[:count].copy_(long[here]).sub_(s[:count]).mul_(broadcast(own, s.ndim)).add_(s[:count])
        out[here] = d[:count]
    return out


def rows_of(weight: Lambda, rows: slice) -> Lambda:
    """Lambda of some rows of a tensor."""
    if isinstance(weight, LowRank) or (isinstance(weight, torch.Tensor) and weight.ndim):
        return weight[rows]
    return weight


def broadcast(weight: Lambda, ndim: int) -> float | torch.Tensor:
    """Lambda in a form that multiplies a tensor of `ndim` dimensions, row by row if it is a vector."""
    if isinstance(weight, LowRank):
        return weight.dense()
    if isinstance(weight, torch.Tensor) and weight.ndim == 1:
        return weight.view(-1, *[1] * (ndim - 1))
    return weight
