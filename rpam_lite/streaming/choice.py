"""Which way of working is taken: the first of a list, best first, that fits the budget."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch

from rpam_lite.checkpoint.files import size_at_least, size_text
from rpam_lite.errors import RpamError
from rpam_lite.recipe.fitting import CodecName
from rpam_lite.streaming.plan import Budget, ModelSize, Plan, Way, WorkSize, plan_for
from rpam_lite.streaming.store import StoreName
from rpam_lite.streaming.weights import Residency

# Best first: exact and at hand, then smaller and at hand, then exact and read for every sweep.
_WAYS: tuple[tuple[CodecName, Residency], ...] = (
    ("exact", "device"),
    ("exact", "host"),
    ("int8", "device"),
    ("int8", "host"),
    ("exact", "disk"),
)
_MICRO_TOKENS = (4096, 2048, 1024, 512, 256)
_CHUNK_ROWS = (16384, 4096)


class BudgetError(RpamError):
    """No way of working fits the budget.

    Attributes:
        needs: What the smallest one needs, without a full stop.
    """

    def __init__(self, needs: str, on_disk: bool) -> None:
        more = "free space on the run folder's disk (or raise `memory.disk`, if set)" if on_disk else "raise `memory`"
        super().__init__(
            f"The memory budget is too small: {needs}. To go on, {more}, or lower `capture.questions_per_class`."
        )
        self.needs = needs


def choose(model: ModelSize, work: WorkSize, budget: Budget, codec: CodecName | None = None, resident: int = 0) -> Plan:
    """The best way of working that fits the budget.

    Args:
        model: The architecture.
        work: The calibration set.
        budget: What may be used.
        codec: Take this one; None leaves it to the plan.
        resident: Bytes that Python and its libraries hold already.

    Raises:
        BudgetError: None fits; names the smallest budget that would.
    """
    on_cpu = budget.device is None
    plans = [plan_for(way, model, work, on_cpu, resident) for way in _ways(on_cpu, codec)]
    for plan in plans:
        if fits(plan, budget):
            return plan
    # What is scarcest counts first.
    smallest = min(plans, key=lambda plan: tuple(_excess(plan, budget)[place] for place in ("device", "host", "disk")))
    needs = ", ".join(
        f"{place} {size_at_least(smallest.total(place))} (given: {size_text(_given(budget, place))})"
        for place, excess in _excess(smallest, budget).items()
        if excess > 0
    )
    on_disk = bool(_excess(smallest, budget)["disk"])
    raise BudgetError(f"the smallest way of working ({describe(smallest.way)}) needs {needs}", on_disk)


def next_smaller(
    plan: Plan, model: ModelSize, work: WorkSize, budget: Budget, place: str, codec: CodecName | None = None
) -> Plan | None:
    """The first way of working that takes less of a place (host, device) than this plan, and fits everywhere else.

    Args:
        plan: What was too much.
        model: As in `choose`.
        work: As in `choose`.
        budget: As in `choose`.
        place: Where it was too much.
        codec: The only one to take; None leaves it open.
    """
    on_cpu = budget.device is None
    for way in _ways(on_cpu, codec):
        smaller = plan_for(way, model, work, on_cpu, plan.resident)
        elsewhere = [excess for other, excess in _excess(smaller, budget).items() if other != place]
        if smaller.total(place) < 0.9 * plan.total(place) and not any(elsewhere):
            return smaller
    return None


def fits(plan: Plan, budget: Budget) -> bool:
    """Whether the plan stays within the budget everywhere."""
    return not any(_excess(plan, budget).values())


def describe(way: Way) -> str:
    """One line."""
    return (
        f"{way.codec} layers on {way.residency}, hidden states on {way.store}, {way.micro_tokens} tokens at a time, "
        f"head {'kept' if way.keep_head else 'read in chunks'} of {way.chunk_rows} rows"
    )


def _ways(on_cpu: bool, codec: CodecName | None) -> Iterator[Way]:
    dtype = torch.float32 if on_cpu else torch.bfloat16
    ways = _WAYS if codec is None else tuple((codec, residency) for residency in ("device", "host", "disk"))
    stores: tuple[StoreName, ...] = ("host", "disk") if on_cpu else ("device", "host", "disk")
    for codec_, residency in ways:
        if on_cpu and residency == "device":
            continue
        for keep, rows, micro, store in product((True, False), _CHUNK_ROWS, _MICRO_TOKENS, stores):
            yield Way(codec_, residency, store, micro, rows, keep, dtype)


def _given(budget: Budget, place: str) -> int:
    return {"device": budget.device or 0, "host": budget.host, "disk": budget.disk}[place]


def _excess(plan: Plan, budget: Budget) -> dict[str, int]:
    return {place: max(0, plan.total(place) - _given(budget, place)) for place in ("device", "host", "disk")}
