"""The device that tensors are computed on: the only module that asks torch which there are.

CUDA cards, Apple's GPU (MPS), and the CPU, which always works. MPS has no float64 and no page-locked memory, shares
its memory with the CPU, and bitsandbytes is not built for it.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass

import torch

from rpam_lite import platform
from rpam_lite.errors import RpamError

_TYPES = ("cuda", "mps", "cpu")


def choose_device(name: str, where: str) -> torch.device:
    """The device of this name.

    Args:
        name: cpu, cuda, cuda:1, mps; or auto: the best there is, cuda before mps before cpu.
        where: What asked for it, for the error.

    Raises:
        RpamError: It is no device's name, or this machine has none such.
    """
    if name == "auto":
        return _current(next(kind for kind in _TYPES if _count(kind)))
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in _TYPES:
        raise RpamError(f"{where} {name!r}: no such device; choose auto, cpu, cuda or mps.")
    count = _count(device.type)
    if count == 0:
        needed = {"cuda": "a CUDA build of torch and a card", "mps": "a Mac with Apple's own chip"}[device.type]
        raise RpamError(f"{where} {name!r}: this machine has no usable GPU (it takes {needed}); choose auto or cpu.")
    if (device.index or 0) >= count:
        raise RpamError(f"{where} {name!r}: torch sees {count} such GPUs; choose another, or auto.")
    return _current(device.type) if device.index is None else device


def _count(kind: str) -> int:
    if kind == "cuda":
        return torch.cuda.device_count() if torch.cuda.is_available() else 0
    return int(kind == "cpu" or torch.backends.mps.is_available())


def _current(kind: str) -> torch.device:
    return torch.device(kind, torch.cuda.current_device()) if kind == "cuda" else torch.device(kind)


@dataclass(frozen=True)
class FreeMemory:
    """Bytes that are free: on the device (None on the CPU), and on the host beside that."""

    device: int | None
    host: int


def free_memory(device: torch.device) -> FreeMemory:
    """What is free now on a device and on the host."""
    host = platform.free_memory()
    if device.type == "cuda":
        # What torch keeps of freed tensors is free for the next ones, and the driver counts it as taken.
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return FreeMemory(int(torch.cuda.mem_get_info(device)[0]) + kept, host)
    if device.type == "mps":
        # Both are one memory: what the layers take, the host does not have.
        own = min(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory(), host * 3 // 4)
        return FreeMemory(max(0, own), host - max(0, own))
    return FreeMemory(None, host)


def in_float64(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in float64: on its own device, or on the CPU where the device has no float64."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


def release_memory(device: torch.device) -> None:
    """Hand back what torch keeps for later."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def take_card(name: str, where: str, rank: int, processes: int) -> bool:
    """Give each process of a machine a card, where `name` is a CUDA device; whether each has one of its own.

    Args:
        name: As in `choose_device`.
        where: What asked for it, for the error.
        rank: Of this process among those of the machine.
        processes: How many there are.

    Raises:
        RpamError: As `choose_device`.
    """
    if choose_device(name, where).type != "cuda":
        return False
    if ":" in name and processes > 1:
        raise RpamError(f"{where} {name!r}: is one card, and {processes} processes run here; write 'cuda', or run one.")
    cards = torch.cuda.device_count()
    torch.cuda.set_device(rank % cards)
    return cards >= processes


def use_in_this_thread(device: torch.device) -> None:
    """A thread begins with card 0, and would take memory there for nothing."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def compute_reproducibly(device: torch.device) -> None:
    """On CUDA, take kernels that give the same bits every time, where torch has such, and sum bf16 products in fp32."""
    if device.type != "cuda":
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when the first product is computed
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # ours are written first
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    warnings.filterwarnings("ignore", message=".*does not have a deterministic implementation.*")


def check_low_bits(device: torch.device, what: str, instead: str) -> None:
    """Whether bitsandbytes' formats can be computed with there.

    Raises:
        RpamError: They can't; `what` asked for them, and `instead` is what to choose.
    """
    if device.type == "mps":
        raise RpamError(f"{what}: bitsandbytes does not compute on Apple's GPU (mps); {instead}.")
