"""What this machine has: the device to run layers on, free memory and disk, and the peak that was used."""

from __future__ import annotations

import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from rpam_lite.errors import RpamError
from rpam_lite.recipe import Memory
from rpam_lite.streaming.plan import Budget

# Of what is free, so much is taken unless the recipe says otherwise.
_SHARE = 0.8


def choose_device(memory: Memory) -> torch.device:
    """The device that the recipe asks for, or the best there is.

    Raises:
        RpamError: `cuda` is asked for and there is none.
    """
    if memory.accelerator == "cuda" and not torch.cuda.is_available():
        raise RpamError(
            "`memory.accelerator` is cuda and this machine has no usable GPU; set it to auto or cpu, "
            "or install a CUDA build of torch."
        )
    if memory.accelerator == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def budget_of(memory: Memory, device: torch.device, folder: Path) -> Budget:
    """The recipe's budget, with what is free now where it is silent."""
    free_device = None
    if device.type == "cuda":
        free_device = memory.device or int(_SHARE * torch.cuda.mem_get_info(device)[0])
    nearest = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    return Budget(
        free_device,
        memory.host or resident_bytes() + int(_SHARE * free_host_bytes()),
        memory.disk or int(_SHARE * shutil.disk_usage(nearest).free),
    )


def free_host_bytes() -> int:
    """Memory that can be had without swapping: MemAvailable, and not above the process's own limit."""
    available = 1 << 62
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                available = int(line.split()[1]) * 1024
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return available if limit == resource.RLIM_INFINITY else min(available, limit)


def resident_bytes() -> int:
    """Resident memory of this process (Linux; 0 elsewhere)."""
    return _status("VmRSS")


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Callable[[], int]]:
    """Measure the most memory held inside the block, in bytes.

    On CUDA what was allocated on the device, else this process's resident memory (Linux; 0 elsewhere).
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield lambda: torch.cuda.max_memory_allocated(device)
        return
    _reset_peak()
    yield lambda: _status("VmHWM")


def _reset_peak() -> None:
    """Have the kernel start its high-water mark of resident memory anew."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _status(field: str) -> int:
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    for line in status.read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    return 0
