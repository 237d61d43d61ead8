"""What capture and fit may use of this machine, and the peak that was used."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from rpam_lite import platform
from rpam_lite.device import check_low_bits, choose_device, free_memory
from rpam_lite.recipe import Memory
from rpam_lite.streaming.plan import Budget

# Of what is free, so much is taken unless the recipe says otherwise.
_SHARE = 0.8


def device_of(memory: Memory) -> torch.device:
    """The device that the recipe asks for, or the best there is.

    Raises:
        RpamError: This machine has none such, or the recipe's codec can't be computed with there.
    """
    device = choose_device(memory.accelerator, "`memory.accelerator`")
    if "nf4" in memory.codec:
        check_low_bits(device, f"`memory.codec` {memory.codec!r}", "choose int8, or set `memory.accelerator` to cpu")
    return device


def budget_of(memory: Memory, device: torch.device, folder: Path) -> Budget:
    """The recipe's budget, with what is free now where it is silent; torchrun's processes share a machine's."""
    free = free_memory(device)
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    nearest = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    return Budget(
        None if free.device is None else memory.device or int(_SHARE * free.device),
        memory.host // processes if memory.host else platform.resident_memory() + int(_SHARE * free.host) // processes,
        (memory.disk or int(_SHARE * shutil.disk_usage(nearest).free)) // processes,
    )


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Callable[[], int]]:
    """Measure the most memory held inside the block, in bytes.

    On CUDA what was allocated on the device, else this process's resident memory; on macOS and Windows, where that
    can't be started anew, its peak since the process began.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield lambda: torch.cuda.max_memory_allocated(device)
        return
    platform.reset_peak()
    yield platform.peak_memory
