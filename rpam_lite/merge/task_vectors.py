"""Interpolation, and the methods on task vectors L - B and S - B, through peft's own functions.

task_arithmetic   B + long * (L - B) + short * (S - B)
ties              of each vector the largest share `density`; per value the sign with more mass, and
                  the mean of what has it, each vector scaled by `long` or `short` before
dare_linear       of each vector a random share `density`, rescaled by 1 / density; then the weighted sum
dare_ties         that random share, then the sign election of TIES
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch

from rpam_lite.checkpoint.arithmetic import interpolate
from rpam_lite.merge.models import Merge, Options, Tensors


def scalar(tensors: Tensors, options: Options) -> torch.Tensor:
    """S + weight * (L - S)."""
    return interpolate(tensors.short, tensors.long, options["weight"])


def through_peft(function: str) -> Merge:
    """The method that peft has under this name."""

    def merge(tensors: Tensors, options: Options) -> torch.Tensor:
        from peft.utils import merge_utils

        assert tensors.base is not None
        combine: Callable[..., torch.Tensor] = getattr(merge_utils, function)
        # A random mask is drawn on the host: another device draws another one from the same seed.
        device = torch.device("cpu") if function.startswith("dare") else tensors.base.device
        vectors = [vector.to(device) for vector in tensors.task_vectors]
        weights = torch.tensor([options["long"], options["short"]], device=device)
        density = [options["density"]] if "density" in options else []
        with torch.random.fork_rng(devices=[]) if density else nullcontext():
            if density:
                torch.manual_seed(tensors.seed)
            return tensors.base + combine(vectors, weights, *density).to(tensors.base.device)

    return merge
