"""The calibration traces: labelled questions with the selected parent's answers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rpam_lite.pipeline.stage import Run

if TYPE_CHECKING:
    from rpam_lite.patterns.label import LabelledQuestion
    from rpam_lite.streaming.activations import CalibrationSet


@dataclass(frozen=True)
class Traces:
    """What capture and fit read.

    Attributes:
        chosen: The traces; under `dial.prices` a question may stand twice, with either parent's answer.
        questions: Their token ids and kept positions.
        weights: By price the weight of every trace; empty without prices.
    """

    chosen: list[LabelledQuestion]
    questions: CalibrationSet
    weights: dict[float, list[float]]


def calibration_traces(run: Run) -> Traces:
    """The labelled questions that the recipe chooses, with the answers that its prices select."""
    from rpam_lite.patterns.label import labelled
    from rpam_lite.patterns.price import family
    from rpam_lite.streaming.capture import calibration_set, choose_questions

    settings, prices = run.recipe.capture, run.recipe.dial.prices
    aside = set(unseen_keys(run)) if prices else set()
    rows = [row for row in pattern_rows(run) if row["key"] not in aside]
    chosen = choose_questions(labelled(rows), settings.questions_per_class, run.recipe.seed)
    weights: dict[float, list[float]] = {}
    if prices:
        wanted = {question.key for question in chosen}
        found = family([row for row in rows if row["key"] in wanted], prices)
        chosen, weights = found.traces, found.weights
    return Traces(chosen, calibration_set(chosen, settings), weights)


def unseen_keys(run: Run) -> list[str]:
    """Keys of the labelled questions that the dial sets aside before capture and fit choose theirs.

    Evenly over the levels, drawn with the run's seed: at most `dial.questions` of them, and a third of each level.
    """
    from rpam_lite.patterns.price import set_aside

    return set_aside(pattern_rows(run), run.recipe.dial.questions, run.recipe.seed)


def pattern_rows(run: Run) -> list[dict[str, Any]]:
    """The rows of patterns.jsonl."""
    lines = (run.of("label") / "patterns.jsonl").read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line]
