"""Findings about question files: broken lines, and calibration on what is measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from quant.tasks.grader import check_grader
from quant.tasks.questions import Question, TaskFile, read_task_file
from quant.tasks.task import Grading, Task
from rpam_lite.preflight.findings import Finding, attempt
from rpam_lite.preflight.overlap import NEAR, SHINGLE, Overlap, overlaps
from rpam_lite.recipe import OURS, Asked, Recipe

FEW = 32  # below that, two draws of questions gave merges far apart


def task_file(told: Asked) -> TaskFile:
    """The questions of `label` or `eval`, with the recipe's names of their fields and its grader."""
    names = told.fields.question, told.fields.answer, told.fields.level
    return TaskFile(told.file, *names, told.grader, told.pattern, told.instruction)


def grading_of(told: Asked, questions: Sequence[Question]) -> Grading:
    """How answers to the questions of `label` or `eval` are graded: strictly, `math` without a box is wrong."""
    return Task("recipe", list(questions), told.grader, told.pattern, fallback=False).grading


def check_questions(recipe: Recipe) -> Iterator[Finding]:
    """Whether both files can be read and share nothing, word for word or nearly."""
    findings: list[Finding] = []
    calibration = attempt(findings, "questions", partial(read_task_file, task_file(recipe.label)))
    evaluation = attempt(findings, "questions", partial(read_task_file, task_file(recipe.eval)))
    for asked in (recipe.label, recipe.eval):
        attempt(findings, "questions", partial(check_grader, asked.grader, asked.pattern))
    yield from findings
    if calibration is not None:
        yield from _too_few(recipe, calibration)
    found = overlaps(calibration or [], evaluation or [])
    exact = [o for o in found if o.similarity == 1]
    near = sorted((o for o in found if o.similarity < 1), key=lambda o: -o.similarity)
    if exact:
        yield _finding(recipe, exact, "the same question")
    if near:
        measure = f"{near[0].similarity:.0%} of all runs of {SHINGLE} words; the limit is {NEAR:.0%}"
        yield _finding(recipe, near, f"nearly the same question (same numbers and signs, {measure})")


def _too_few(recipe: Recipe, calibration: Sequence[Question]) -> Iterator[Finding]:
    """Calibration sets that a merge can be made from, and that say too little."""
    distinct = len({question.question for question in calibration})
    where = f"{recipe.label.file}: "
    if distinct < len(calibration):
        message = f"{where}holds {len(calibration) - distinct} of its {len(calibration)} questions more than once."
        yield Finding("WARNING", "repeated", message, "counts them as often", "label.questions")
    if distinct < FEW and recipe.merge.method == OURS:
        message = f"{where}{distinct} questions are few to choose on; take {FEW} at least, better 100 to 200."
        yield Finding("WARNING", "few-questions", message, "may keep no budget and no accuracy", "label.questions")


def _finding(recipe: Recipe, found: list[Overlap], what: str) -> Finding:
    """One finding for all, the first with both of its lines."""
    first, others = found[0], len(found) - 1
    message = (
        f"{recipe.label.file}, line {first.calibration.key}, and {recipe.eval.file}, line "
        f"{first.measured.key}: {what}, {first.calibration.question[:80]!r}"
        f"{f', and {others} more such lines' if others else ''}; calibrating on what is measured proves nothing: "
        "delete them from the former."
    )
    return Finding("ERROR", "overlap", message, key="label.questions")
