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

from rpam_lite.device import choose_device
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
def processes() -> Iterator[Processes]:
    """Join the processes that torchrun started; alone otherwise."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Processes(0, 1, lambda vector: vector)
        return
    on_cuda = choose_device("auto", "torchrun").type == "cuda" and dist.is_nccl_available()
    if on_cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_cuda else "gloo")

    def reduce(vector: torch.Tensor) -> torch.Tensor:
        # Gloo takes no vector of another device.
        summed = vector.clone() if on_cuda else vector.to("cpu", copy=True)
        dist.all_reduce(summed)
        return summed.to(vector.device)

    try:
        yield Processes(dist.get_rank(), world, reduce)
    finally:
        dist.destroy_process_group()
