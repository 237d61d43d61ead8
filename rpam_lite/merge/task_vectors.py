"""Interpolation, and the methods on task vectors L - B and S - B, through peft's own functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from rpam_lite.checkpoint.arithmetic import interpolate

Options = Mapping[str, float]


def scalar(
    long: torch.Tensor, short: torch.Tensor, base: torch.Tensor | None, options: Options, seed: int
) -> torch.Tensor:
    """S + weight * (L - S)."""
    return interpolate(short, long, options["weight"])


def task_arithmetic(
    long: torch.Tensor, short: torch.Tensor, base: torch.Tensor | None, options: Options, seed: int
) -> torch.Tensor:
    """B + long * (L - B) + short * (S - B)."""
    from peft.utils.merge_utils import task_arithmetic as combine

    return _on_base(long, short, base, options, lambda vectors, weights: combine(vectors, weights))


def ties(
    long: torch.Tensor, short: torch.Tensor, base: torch.Tensor | None, options: Options, seed: int
) -> torch.Tensor:
    """Of each task vector the largest share `density`; per value the sign with more mass, and the mean of what has it.

    `long` and `short` scale the vectors before that mean.
    """
    from peft.utils.merge_utils import ties as combine

    return _on_base(long, short, base, options, lambda vectors, weights: combine(vectors, weights, options["density"]))


def dare_linear(
    long: torch.Tensor, short: torch.Tensor, base: torch.Tensor | None, options: Options, seed: int
) -> torch.Tensor:
    """Of each task vector a random share `density`, rescaled by 1 / density; then the weighted sum."""
    from peft.utils.merge_utils import dare_linear as combine

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _on_base(
            long, short, base, options, lambda vectors, weights: combine(vectors, weights, options["density"])
        )


def dare_ties(
    long: torch.Tensor, short: torch.Tensor, base: torch.Tensor | None, options: Options, seed: int
) -> torch.Tensor:
    """DARE's random share, then the sign election of TIES."""
    from peft.utils.merge_utils import dare_ties as combine

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _on_base(
            long, short, base, options, lambda vectors, weights: combine(vectors, weights, options["density"])
        )


def _on_base(
    long: torch.Tensor,
    short: torch.Tensor,
    base: torch.Tensor | None,
    options: Options,
    combine: Callable[[list[torch.Tensor], torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    assert base is not None
    weights = torch.tensor([options["long"], options["short"]])
    return base + combine([long - base, short - base], weights)
