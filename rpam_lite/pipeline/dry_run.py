"""`rpam run --dry-run`: which stages would run, why, and what that costs; nothing is touched."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import RenderableType
from rich.table import Table

from rpam_lite.checkpoint.files import size_text
from rpam_lite.errors import RpamError
from rpam_lite.pipeline.parents import on_hub, with_headers
from rpam_lite.pipeline.stage import Run
from rpam_lite.pipeline.status import RunStatus, StageStatus, status_of


def dry_run(run: Run) -> Iterator[RenderableType]:
    """What to print: the stages, what an earlier run of them took, and what preflight and the planner expect.

    Args:
        run: Opened to look at; parents that are not on this machine yet stand by their id on the hub.
    """
    status = status_of(run)
    yield _table(status)
    due = [stage for stage in status.stages if stage.runs]
    if not due:
        yield f"nothing would run: every stage in {run.folder} is done."
        return
    known = [stage.seconds for stage in due if stage.seconds is not None]
    took = f"{sum(known):.0f} s when they were done last" if known else "time not known, none was done yet"
    if known and len(known) < len(due):
        took += f" ({len(due) - len(known)} of them never ended)"
    yield f"{len(due)} of {len(status.stages)} stages would run: {took}."
    yield from _expected(run)
    if status.at_work:
        yield f"{run.folder}: another process works there now; a run would be refused."


def _table(status: RunStatus) -> Table:
    table = Table(show_edge=False)
    for column in ("stage", "would", "why", "took", "files"):
        table.add_column(column, justify="right" if column in ("took", "files") else "left", overflow="fold")
    for stage in status.stages:
        took = "" if stage.seconds is None else f"{stage.seconds:.1f} s"
        table.add_row(stage.stage, _action(stage), stage.why, took, size_text(stage.bytes) if stage.bytes else "")
    return table


def _action(stage: StageStatus) -> str:
    if not stage.runs:
        return "be reused"
    if stage.state == "interrupted":
        return "go on"
    return "run, if they change" if stage.may_be_reused else "run"


def _expected(run: Run) -> Iterator[str]:
    """Disk and memory, from headers and configs."""
    from rpam_lite.preflight import costs

    try:
        with TemporaryDirectory() as place:
            for hub_id in on_hub(run.recipe).values():
                yield f"{hub_id}: would be downloaded into the hub's cache first."
            recipe = with_headers(run.recipe, Path(place)) if on_hub(run.recipe) else run.recipe
            for finding in costs(recipe, run.folder):
                yield f"{finding.code}: {finding.without(f'{place}/').message}{_way(finding.effect)}"
    except (RpamError, OSError) as error:
        yield f"disk and memory: not known, {error}"


def _way(effect: str) -> str:
    return f" It {effect}." if effect else ""
