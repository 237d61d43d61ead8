"""Models compared in pairs on the same questions, with intervals; and against interpolation at equal tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from quant.frontier import Gain, gain_over_curve
from quant.measures import Answers, by_question, require_same_questions
from quant.statistics import Interval, interval, paired_difference, ratio

if TYPE_CHECKING:
    from quant.evaluation import ModelRun, Settings


@dataclass(frozen=True)
class Point:
    """Where a model stands on a task: pass@1 and mean generated tokens."""

    model: str
    task: str
    accuracy: Interval
    tokens: Interval


@dataclass(frozen=True)
class Difference:
    """Two models on a task.

    Attributes:
        model: The one.
        other: The other.
        task: On what.
        accuracy: pass@1 of the one minus that of the other.
        tokens: Mean generated tokens of the one over those of the other.
    """

    model: str
    other: str
    task: str
    accuracy: Interval
    tokens: Interval


@dataclass(frozen=True)
class Comparison:
    """Models compared.

    Attributes:
        points: Every model's place.
        differences: Of pairs.
        above: Places against plain interpolation at equal tokens, by model and task, where asked for.
    """

    points: tuple[Point, ...]
    differences: tuple[Difference, ...]
    above: Mapping[str, Mapping[str, Gain]] = field(default_factory=dict)

    def table(self) -> None:
        """Print the differences, and the places against interpolation."""
        from quant.tables import comparison_table, console, curve_table

        console().print(comparison_table(self))
        if self.above:
            console().print(curve_table(self.above))

    def plot(self, path: str | Path) -> None:
        """Draw accuracy against tokens, one panel a task; the format follows the file's ending."""
        from quant.plot import plot_points

        plot_points(self.points, Path(path))


def compare_runs(
    runs: Sequence[ModelRun], pairs: Sequence[tuple[ModelRun, ModelRun]], settings: Settings
) -> Comparison:
    """Place all runs, and take the differences of pairs by a paired bootstrap over questions.

    Raises:
        RpamError: The two of a pair were not asked the same questions.
    """
    seed = settings.sampling.seed
    points = [
        Point(run.name, task, interval(answers.correct, seed=seed), interval(answers.tokens, seed=seed))
        for run in runs
        for task, answers in _answers(run).items()
    ]
    differences = []
    for one, other in pairs:
        theirs = _answers(other)
        for task, ours in _answers(one).items():
            require_same_questions(ours, theirs[task])
            accuracy = paired_difference(ours.correct, theirs[task].correct, seed=seed)
            tokens = np.stack([ours.tokens.mean(1), theirs[task].tokens.mean(1)], axis=1)
            differences.append(Difference(one.name, other.name, task, accuracy, interval(tokens, ratio, seed=seed)))
    return Comparison(tuple(points), tuple(differences))


def compare_to_curve(run: ModelRun, curve: Sequence[ModelRun], settings: Settings) -> dict[str, Gain]:
    """Accuracy of a model above the curve of plain interpolations at the same mean tokens, by task.

    Args:
        run: The model.
        curve: Interpolations in order of lambda, the Short and the Long parent as its ends.
        settings: How all were asked.

    Raises:
        RpamError: They were not asked the same questions.
    """
    for task, answers in _answers(run).items():
        require_same_questions(answers, *(_answers(other)[task] for other in curve))
    return {
        task: gain_over_curve(records, [other.records[task] for other in curve], settings.sampling.seed)
        for task, records in run.records.items()
    }


def _answers(run: ModelRun) -> dict[str, Answers]:
    return {task: by_question(records) for task, records in run.records.items()}
