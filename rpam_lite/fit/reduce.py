"""Sums over processes: the only thing that several GPUs or machines exchange in a fit.

Under torchrun every process takes a share of the calibration set; what is summed is one vector with
the terms and the gradient of lambda, or the normal equations of one layer.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist

from rpam_lite.device import take_card
from rpam_lite.fit.problem import Reducer


@dataclass(frozen=True)
class Processes:
    """This process among those that fit together."""

    rank: int
    world: int
    reduce: Reducer

    def any(self, own: bool) -> bool:
        """Whether it holds in any of the processes; all of them have to ask."""
        return bool(self.reduce(torch.tensor([float(own)])).item())


@contextmanager
def processes(accelerator: str) -> Iterator[Processes]:
    """Join the processes that torchrun started; alone otherwise.

    Args:
        accelerator: The recipe's. On CUDA every process takes a card of its own, as long as there are enough.

    Raises:
        RpamError: This machine has no such accelerator.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Processes(0, 1, lambda vector: vector)
        return
    rank, here = (
        int(os.environ.get(name, default)) for name, default in (("LOCAL_RANK", "0"), ("LOCAL_WORLD_SIZE", "1"))
    )
    # NCCL takes one process a card.
    with_nccl = take_card(accelerator, "`memory.accelerator`", rank, here) and dist.is_nccl_available()
    dist.init_process_group("cpu:gloo,cuda:nccl" if with_nccl else "gloo")

    def reduce(vector: torch.Tensor) -> torch.Tensor:
        # Gloo takes no vector of another device.
        summed = vector.clone() if with_nccl else vector.to("cpu", copy=True)
        dist.all_reduce(summed)
        return summed.to(vector.device)

    try:
        yield Processes(dist.get_rank(), world, reduce)
    finally:
        dist.destroy_process_group()
