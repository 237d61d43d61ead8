"""`rpam status`: where a run stands, what it cost, and what is next."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.table import Table

from rpam_lite.checkpoint.files import read_json, size_text
from rpam_lite.pipeline.manifest import STARTED, read_manifest
from rpam_lite.pipeline.opening import is_worked_on
from rpam_lite.pipeline.stage import Run, fingerprint
from rpam_lite.pipeline.trip import STAGES, why_runs

State = Literal["done", "out of date", "interrupted", "at work", "not done"]
STATUS_VERSION = 1


@dataclass(frozen=True)
class StageStatus:
    """Where a stage stands.

    Attributes:
        stage: Its name.
        state: Done with this recipe; out of date; begun and not ended; being worked on; or never done.
        runs: Whether `rpam run` would do it now.
        why: Why it would; empty if it would not.
        may_be_reused: Whether it would run only if a stage before it makes other files than before.
        seconds: What it took when it was done last; None if it never was.
        bytes: Size of its files.
    """

    stage: str
    state: State
    runs: bool
    why: str
    may_be_reused: bool
    seconds: float | None
    bytes: int


@dataclass(frozen=True)
class RunStatus:
    """Where a run stands: its stages in order, and all that lies in its folder, in bytes."""

    recipe: str
    folder: Path
    at_work: bool
    stages: tuple[StageStatus, ...]
    bytes: int

    @property
    def next_stage(self) -> str | None:
        """The first stage that `rpam run` would do; None if there is none."""
        return next((stage.stage for stage in self.stages if stage.runs), None)

    def as_json(self, command: str | None) -> dict[str, Any]:
        """One object; `command` is what to run next."""
        return {
            "version": STATUS_VERSION,
            "recipe": self.recipe,
            "folder": str(self.folder),
            "at_work": self.at_work,
            "stages": [vars(stage) for stage in self.stages],
            "seconds": round(sum(stage.seconds or 0 for stage in self.stages), 1),
            "bytes": self.bytes,
            "next": None if command is None else {"stage": self.next_stage, "command": command},
        }


def status_of(run: Run) -> RunStatus:
    """Look at every stage that the recipe needs; nothing is written.

    Raises:
        RpamError: A manifest is no JSON.
    """
    at_work = is_worked_on(run.folder)
    stages = tuple(_stage(name, run, at_work) for name, stage in STAGES.items() if stage.applies(run.recipe))
    return RunStatus(run.recipe.name, run.folder, at_work, stages, folder_bytes(run.folder))


def folder_bytes(folder: Path) -> int:
    """Size of all files below a folder; one that goes meanwhile does not count."""
    total = 0
    for file in folder.rglob("*"):
        with suppress(FileNotFoundError):
            total += file.stat().st_size if file.is_file() else 0
    return total


def _stage(name: str, run: Run, at_work: bool) -> StageStatus:
    manifest, begun = read_manifest(name, run), run.of(name) / STARTED
    reason = why_runs(name, run)
    state: State = "done"
    why = reason.text if reason else ""
    if manifest is None and begun.exists():
        same = read_json(begun, "the stage's start mark").get("fingerprint") == fingerprint(STAGES[name], run.recipe)
        state, why = "interrupted", "goes on where it stopped" if same else "begun with another recipe: starts anew"
        if at_work:
            state, why = "at work", "another process is at it"
    elif manifest is None:
        state = "not done"
    elif reason and reason.kind != "removed":
        state = "out of date"
    seconds = manifest["seconds"] if manifest else None
    may_be_reused = reason is not None and reason.kind == "earlier" and state == "out of date"
    return StageStatus(name, state, reason is not None, why, may_be_reused, seconds, folder_bytes(run.of(name)))


def status_table(status: RunStatus) -> Table:
    """One row a stage."""
    table = Table(show_edge=False)
    for column in ("stage", "state", "took", "files", "why it would run"):
        table.add_column(column, justify="right" if column in ("took", "files") else "left", overflow="fold")
    for stage in status.stages:
        took = "" if stage.seconds is None else f"{stage.seconds:.1f} s"
        size = size_text(stage.bytes) if stage.bytes else ""
        table.add_row(stage.stage, stage.state, took, size, stage.why)
    table.add_section()
    seconds = sum(stage.seconds or 0 for stage in status.stages)
    table.add_row("all", "", f"{seconds:.1f} s", size_text(status.bytes), "")
    return table
