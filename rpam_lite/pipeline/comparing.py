"""`rpam compare`: run folders and saved evaluations against the first of them, on the same questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from rpam_lite.checkpoint.files import read_json
from rpam_lite.errors import RpamError
from rpam_lite.run_files import EVALUATION

if TYPE_CHECKING:
    from quant.comparison import Comparison
    from quant.evaluation import ModelRun
    from quant.records import Record
    from quant.statistics import Interval

COMPARISON_VERSION = 1
# The task of a run folder's own evaluation, which has no other.
_TASK = "eval"


@dataclass(frozen=True)
class Measured:
    """One side: how it is called, and the answers of its models."""

    label: str
    models: tuple[ModelRun, ...]


def compare_measured(given: Sequence[Path], chosen: Sequence[str]) -> Comparison:
    """Accuracy and tokens of every model, and the differences from the models of the first one given.

    Each model is compared with that of the same name; with all of the first where none is called so.

    Args:
        given: Run folders, or JSON files that `rpam eval` wrote.
        chosen: Names of models; of a run folder all merges if empty, of a file all models.

    Raises:
        RpamError: There are fewer than two, one was not measured, or they were not asked the same in the same way.
    """
    from quant.comparison import compare_runs
    from quant.evaluation import Settings

    if len(given) < 2:
        raise RpamError(f"{given[0]}: give at least two to compare.")
    sides = [_measured(path, label, chosen) for path, label in zip(given, _labels(given), strict=True)]
    measured = {model.name for side in sides for model in side.models}
    if unknown := [name for name in chosen if name not in measured]:
        raise RpamError(
            f"--model {unknown[0]}: none of them has a model of that name, but {', '.join(sorted(measured))}."
        )
    first = sides[0]
    sides = [first, *(_on_tasks_of(first, side) for side in sides[1:])]
    for side in sides[1:]:
        _require_asked_alike(first, side)
    named = [[replace(model, name=f"{side.label}: {model.name}") for model in side.models] for side in sides]
    pairs = [
        (ours, theirs)
        for side, models in zip(sides[1:], named[1:], strict=True)
        for model, ours in zip(side.models, models, strict=True)
        for theirs in _counterparts(model.name, first, named[0])
    ]
    return compare_runs([run for models in named for run in models], pairs, Settings())


def comparison_json(found: Comparison) -> dict[str, Any]:
    """Every figure as [value, low end, high end] of its 95 % interval; null where it is not defined."""
    return {
        "version": COMPARISON_VERSION,
        "models": [
            {"model": p.model, "task": p.task, "accuracy": _told(p.accuracy), "tokens": _told(p.tokens)}
            for p in found.points
        ],
        "differences": [
            {
                "model": d.model,
                "against": d.other,
                "task": d.task,
                "accuracy": _told(d.accuracy),
                "tokens_ratio": _told(d.tokens),
            }
            for d in found.differences
        ],
    }


def points_table(found: Comparison) -> Table:
    """Where every model stands."""
    from quant.tables import number, percent

    table = Table(title="95 % intervals", show_edge=False)
    for column in ("task", "model", "pass@1, %", "tokens"):
        table.add_column(column, justify="left" if column in ("task", "model") else "right", overflow="fold")
    for point in found.points:
        table.add_row(point.task, point.model, percent(point.accuracy), number(point.tokens))
    return table


def _told(interval: Interval) -> list[float] | None:
    return None if isnan(interval.value) else [interval.value, interval.low, interval.high]


def _labels(given: Sequence[Path]) -> list[str]:
    """Short names where they tell all apart, else the paths."""
    short = [path.resolve().name if path.is_dir() else path.stem for path in given]
    labels = short if len(set(short)) == len(short) else [str(path) for path in given]
    if len(set(labels)) < len(labels):
        raise RpamError(f"{given[0]}: one is given twice; compare different ones.")
    return labels


def _measured(path: Path, label: str, chosen: Sequence[str]) -> Measured:
    """What was measured there."""
    from quant.evaluation import read_evaluation

    file = path / EVALUATION if path.is_dir() else path
    if path.is_dir() and not file.exists():
        raise RpamError(f"{path}: is no run folder with measurements; run `rpam eval` for it first.")
    told = read_json(file, "the evaluation")
    models = _of_run(file, told, chosen) if "rows" in told else read_evaluation(file).runs
    models = tuple(model for model in models if not chosen or model.name in chosen)
    if not models:
        known = [row["name"] for row in told.get("rows", told.get("runs", []))]
        raise RpamError(f"{path}: has no model {' or '.join(chosen) or 'that is a merge'}; it has {', '.join(known)}.")
    return Measured(label, models)


def _of_run(file: Path, told: dict[str, Any], chosen: Sequence[str]) -> tuple[ModelRun, ...]:
    """Models of a run's own evaluation, with their records."""
    from quant.evaluation import ModelRun

    rows = [row for row in told["rows"] if (row["name"] in chosen if chosen else row["kind"] == "merge")]
    return tuple(
        ModelRun(row["name"], row["records"], {_TASK: _records(file.parent / row["records"], told["questions"])})
        for row in rows
    )


def _records(file: Path, questions: int) -> list[Record]:
    """Records of a run's row, in the order of the questions."""
    from quant.records import evaluated

    return sorted(evaluated(file, questions), key=lambda record: (len(record.question), record.question))


def _on_tasks_of(first: Measured, other: Measured) -> Measured:
    """The other with its tasks named as those of the first: a run folder's only one has no name of its own."""
    theirs, ours = list(first.models[0].records), list(other.models[0].records)
    if set(theirs) == set(ours):
        return other
    if len(theirs) > 1 or len(ours) > 1 or _TASK not in (*theirs, *ours):
        raise RpamError(
            f"{first.label} was measured on {', '.join(theirs)}, {other.label} on {', '.join(ours)}; "
            "compare models on the same tasks.",
        )
    renamed = tuple(replace(model, records={theirs[0]: model.records[ours[0]]}) for model in other.models)
    return Measured(other.label, renamed)


def _require_asked_alike(one: Measured, other: Measured) -> None:
    for task, ours in one.models[0].records.items():
        theirs = other.models[0].records[task]
        for what, a, b in (
            ("different questions", _questions(ours), _questions(theirs)),
            ("different sampling or limits of tokens", _way(ours), _way(theirs)),
            ("different graders (recipes are measured as by `rpam eval --strict`)", ours[0].grader, theirs[0].grader),
        ):
            if a != b:
                raise RpamError(f"{one.label} and {other.label}: {what} on {task}; measure both in the same way.")


def _questions(records: Sequence[Record]) -> list[tuple[str, int, str]]:
    return sorted({(record.question, record.level, record.answer) for record in records})


def _way(records: Sequence[Record]) -> dict[str, float]:
    told = dict(records[0].sampling or {})
    # Every sample draws with a seed of its own; greedily nothing is drawn.
    unread = {"seed", "top_p", "top_k"} if told.get("temperature") == 0 else {"seed"}
    return {key: value for key, value in told.items() if key not in unread}


def _counterparts(name: str, first: Measured, named: Sequence[ModelRun]) -> list[ModelRun]:
    same = [run for model, run in zip(first.models, named, strict=True) if model.name == name]
    return same or list(named)
