"""A lack of memory in capture or fit, as an error that says what would need less."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rpam_lite.errors import RpamError

if TYPE_CHECKING:
    from rpam_lite.fit.setup import Planned


@contextmanager
def advice(planned: Planned) -> Iterator[None]:
    """Turn a lack of memory into an error that says what would need less."""
    import torch

    from rpam_lite.checkpoint.files import size_text
    from rpam_lite.streaming.plan import describe, next_smaller

    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "allocate memory" not in str(error):
            raise
        on_cpu = planned.skeleton.device.type == "cpu"
        place = "host" if on_cpu else "device"
        smaller = next_smaller(planned.plan, planned.model, planned.work, on_cpu)
        advice = (
            "no way of working needs less; lower `capture.questions_per_class`"
            if smaller is None
            else f"set `memory.{place}` to {size_text(smaller.total(place))}, which makes it {describe(smaller.way)}"
        )
        raise RpamError(
            f"Out of {place} memory with {describe(planned.plan.way)} "
            f"(planned: {size_text(planned.plan.total(place))}); {advice}. "
            "What is done stays for a run with the same `memory`; another one starts this stage anew.",
            code="E07",
        ) from None
