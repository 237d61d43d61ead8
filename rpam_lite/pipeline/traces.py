"""The calibration traces: labelled questions with the selected parent's answers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from rpam_lite.pipeline.stage import Run

if TYPE_CHECKING:
    from rpam_lite.streaming.activations import CalibrationSet


def calibration_traces(run: Run) -> tuple[list[Any], CalibrationSet]:
    """The labelled questions that the recipe chooses, and their token ids and kept positions."""
    from rpam_lite.patterns.label import labelled
    from rpam_lite.streaming.capture import calibration_set, choose_questions

    settings = run.recipe.capture
    lines = (run.of("label") / "patterns.jsonl").read_text(encoding="utf-8").split("\n")
    questions = labelled(json.loads(line) for line in lines if line)
    chosen = choose_questions(questions, settings.questions_per_class, run.recipe.seed)
    return chosen, calibration_set(chosen, settings)
