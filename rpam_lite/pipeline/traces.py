"""The calibration traces: labelled questions with the selected parent's answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rpam_lite.checkpoint.files import all_rows
from rpam_lite.pipeline.stage import Run
from rpam_lite.run_files import PATTERNS

if TYPE_CHECKING:
    from rpam_lite.patterns.label import LabelledQuestion
    from rpam_lite.streaming.activations import CalibrationSet


@dataclass(frozen=True)
class Traces:
    """What capture and fit read.

    Attributes:
        chosen: The traces; under a dial a question may stand twice, with either parent's answer.
        questions: Their token ids and kept positions.
        weights: The weight of every trace: by price under a dial `by: fit`, under None under one by decision; empty
            without a dial.
    """

    chosen: list[LabelledQuestion]
    questions: CalibrationSet
    weights: Mapping[float | None, list[float]]


def calibration_traces(run: Run) -> Traces:
    """The labelled questions that the recipe chooses, with the answers that its prices select."""
    from rpam_lite.patterns.label import labelled
    from rpam_lite.patterns.price import both_answers, family
    from rpam_lite.streaming.calibration import calibration_set, choose_questions

    settings, dial = run.recipe.capture, run.recipe.family
    rows = seen_rows(run)
    chosen = choose_questions(labelled(rows), settings.questions_per_class, run.recipe.seed)
    weights: Mapping[float | None, list[float]] = {}
    wanted = {question.key for question in chosen}
    if dial.decides:
        chosen, rights = both_answers([row for row in rows if row["key"] in wanted])
        weights = {None: rights}
    elif dial.settings:
        found = family([row for row in rows if row["key"] in wanted], sorted(dial.prices))
        chosen = found.traces
        weights = {price: own for price, own in found.weights.items()}  # noqa: C416 - of another type
    return Traces(chosen, calibration_set(chosen, settings, run.recipe.reads_hidden_states), weights)


def seen_rows(run: Run) -> list[dict[str, Any]]:
    """The rows of patterns.jsonl that the fit may read: all, but under a dial those that it sets aside."""
    rows = pattern_rows(run)
    aside = set(_aside(run, rows)) if run.recipe.family.settings else set()
    return [row for row in rows if row["key"] not in aside]


def unseen_keys(run: Run) -> list[str]:
    """Keys of the labelled questions that the dial sets aside before capture and fit choose theirs.

    Evenly over the levels, drawn with the run's seed: at most `dial.questions` of them, and a third of each level.
    """
    return _aside(run, pattern_rows(run))


def _aside(run: Run, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    from rpam_lite.patterns.price import set_aside

    return set_aside(rows, run.recipe.family.questions, run.recipe.seed)


def pattern_rows(run: Run) -> list[dict[str, Any]]:
    """The rows of patterns.jsonl, in the questions' order.

    Raises:
        RpamError: A line of it is damaged.
    """
    return all_rows(run.folder / PATTERNS, "run `rpam label` again (the answers are kept)")
