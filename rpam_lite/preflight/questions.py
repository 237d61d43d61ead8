"""Findings about question files: broken lines, and calibration on what is measured."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from quant.tasks.questions import load_questions
from rpam_lite.preflight.findings import Finding, attempt
from rpam_lite.recipe import Recipe


def check_questions(recipe: Recipe) -> Iterator[Finding]:
    """Whether both files can be read and share nothing."""
    findings: list[Finding] = []
    calibration = attempt(findings, "questions", partial(load_questions, recipe.label.questions))
    evaluation = attempt(findings, "questions", partial(load_questions, recipe.eval.questions))
    yield from findings
    shared = {_plain(q.question) for q in calibration or ()} & {_plain(q.question) for q in evaluation or ()}
    if shared:
        message = (
            f"{recipe.label.questions} and {recipe.eval.questions}: share {len(shared)} questions (such as "
            f"{min(shared)!r}); calibrating on what is measured afterwards proves nothing."
        )
        yield Finding("ERROR", "overlap", message, key="label.questions")


def _plain(question: str) -> str:
    return " ".join(question.lower().split())
