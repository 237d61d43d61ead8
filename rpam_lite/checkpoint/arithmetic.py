"""The one formula that everything here turns on."""

from __future__ import annotations

import torch

_BLOCK = 1 << 19


def interpolate(short: torch.Tensor, long: torch.Tensor, weight: float | torch.Tensor) -> torch.Tensor:
    """S + weight * (L - S) in fp32.

    Args:
        short: The Short parent's tensor.
        long: The Long parent's, of the same shape.
        weight: Lambda, that of the Long parent: a number, a scalar tensor, or one value a row.
    """
    s = short.float()
    # A copy even of an fp32 tensor: it is worked on in place.
    return long.to(torch.float32, copy=True).sub_(s).mul_(broadcast(weight, s.ndim)).add_(s)


def interpolate_rounded(
    short: torch.Tensor, long: torch.Tensor, weight: float | torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
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
        own = weight[here] if isinstance(weight, torch.Tensor) and weight.ndim else weight
        s[:count].copy_(short[here])
        d[:count].copy_(long[here]).sub_(s[:count]).mul_(broadcast(own, s.ndim)).add_(s[:count])
        out[here] = d[:count]
    return out


def broadcast(weight: float | torch.Tensor, ndim: int) -> float | torch.Tensor:
    """Lambda in a form that multiplies a tensor of `ndim` dimensions, row by row if it is a vector."""
    if isinstance(weight, torch.Tensor) and weight.ndim == 1:
        return weight.view(-1, *[1] * (ndim - 1))
    return weight
