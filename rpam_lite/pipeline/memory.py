"""A lack of memory in capture or fit, as an error that says what would need less."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rpam_lite.errors import RpamError

if TYPE_CHECKING:
    from rpam_lite.fit.setup import Planned

# What torch and the system say of the host: on Linux and macOS, and on Windows.
_OF_THE_HOST = ("allocate memory", "not enough memory")
# What CUDA, cuBLAS and Metal say beside torch's own error.
_OF_A_DEVICE = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def _lacking(error: Exception, on_cpu: bool) -> str | None:
    """Where memory was lacking, `device` or `host`; None for an error of another kind."""
    import torch

    if isinstance(error, MemoryError) or any(text in str(error) for text in _OF_THE_HOST):
        return "host"
    if isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in _OF_A_DEVICE):
        return "host" if on_cpu else "device"
    return None


@contextmanager
def advice(planned: Planned) -> Iterator[None]:
    """Turn a lack of memory into an error that says what would need less."""
    import torch

    from rpam_lite.checkpoint.files import size_at_least, size_text
    from rpam_lite.streaming.choice import describe, next_smaller

    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        on_cpu = planned.skeleton.device.type == "cpu"
        if (place := _lacking(error, on_cpu)) is None:
            raise
        smaller = next_smaller(planned.plan, planned.model, planned.work, planned.budget, place, planned.codec)
        if smaller is None:
            fixed = f" with `memory.codec: {planned.codec}`" if planned.codec else ""
            then = f"no way of working{fixed} needs less; lower `capture.questions_per_class`"
        else:
            enough = size_at_least(smaller.total(place))
            then = f"set `memory.{place}` to {enough}, which makes it {describe(smaller.way)}"
        raise RpamError(
            f"Out of {place} memory with {describe(planned.plan.way)} "
            f"(planned: {size_text(planned.plan.total(place))}); {then}. "
            "What is done stays for a run with the same `memory`; another one starts this stage anew.",
            code="E07",
        ) from None


def peak_text(what: str, planned: Planned, measured: int) -> str:
    """The measured peak in bytes beside the planned one, of the place that the layers run in."""
    place = "host" if planned.skeleton.device.type == "cpu" else "device"
    expected = planned.plan.total(place)
    return f"peak memory of {what} ({place}): {measured / 2**20:.0f} MiB, planned {expected / 2**20:.0f} MiB"
