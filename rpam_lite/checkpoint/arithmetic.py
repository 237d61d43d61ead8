"""The one formula that everything here turns on."""

from __future__ import annotations

import torch


def interpolate(short: torch.Tensor, long: torch.Tensor, weight: float | torch.Tensor) -> torch.Tensor:
    """S + weight * (L - S) in fp32; `weight` (lambda) is that of the Long parent."""
    s = short.float()
    return s + weight * (long.float() - s)
