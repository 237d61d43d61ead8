"""A plan as text: what takes how many bytes where, beside the budget."""

from __future__ import annotations

from io import StringIO

from rich.console import Console
from rich.table import Table

from rpam_lite.checkpoint.files import size_text
from rpam_lite.streaming.choice import describe
from rpam_lite.streaming.plan import Budget, Plan

UNLIMITED = 1 << 62


def plan_table(plan: Plan, budget: Budget) -> str:
    """The plan as a table."""
    places = ["device", "host", "disk"] if budget.device is not None else ["host", "disk"]
    table = Table(show_edge=False)
    table.add_column("item")
    for place in places:
        table.add_column(place, justify="right")
    for what, where, size in plan.items:
        table.add_row(what, *(size_text(size) if place == where else "" for place in places))
    table.add_section()
    table.add_row("expected peak", *(size_text(plan.total(place)) for place in places))
    given = {"device": budget.device or 0, "host": budget.host, "disk": budget.disk}
    table.add_row("budget", *(size_text(given[place]) if given[place] < UNLIMITED else "-" for place in places))
    table.add_section()
    table.add_row("weights moved a joint step", size_text(plan.moved))
    buffer = StringIO()
    Console(file=buffer, width=110).print(table)
    return f"plan: {describe(plan.way)}\n{buffer.getvalue().rstrip()}"
