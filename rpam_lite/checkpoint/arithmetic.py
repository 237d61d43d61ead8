"""The one formula that everything here turns on."""

from __future__ import annotations

import torch


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


def broadcast(weight: float | torch.Tensor, ndim: int) -> float | torch.Tensor:
    """Lambda in a form that multiplies a tensor of `ndim` dimensions, row by row if it is a vector."""
    if isinstance(weight, torch.Tensor) and weight.ndim == 1:
        return weight.view(-1, *[1] * (ndim - 1))
    return weight
