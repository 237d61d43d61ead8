"""Questions that a recipe names by data set: drawn once, and kept as files in the run folder.

    label:
      questions: {gsm8k:train: 300, math:train: 300}

`questions/` of the run folder holds `calibration.jsonl` and `evaluation.jsonl`, which all stages read, and
`sets.json`: what was asked for, and where it came from. While the recipe asks for the same, they are used
again and the hub is not asked. A calibration question that is also in a measured set, word for word or
nearly, is passed over; so is one whose gold answer no answer could be graded against.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rpam_lite.checkpoint.files import read_json, write_json, write_text
from rpam_lite.errors import RpamError
from rpam_lite.recipe import QuestionSets, Recipe
from rpam_lite.run_files import QUESTION_SETS

if TYPE_CHECKING:
    from quant.tasks.questions import Question
    from quant.tasks.task import Task

SETS_VERSION = 1
FOLDER, RECORD = Path(QUESTION_SETS).parts
_FILES = {"label": "calibration.jsonl", "eval": "evaluation.jsonl"}


@dataclass(frozen=True)
class Drawn:
    """What was taken of one set, and how many of its questions were passed over before all were found."""

    questions: list[Question]
    overlapping: int
    ungradable: int


def with_questions(recipe: Recipe, kept: Path, place: Path, say: Callable[[str], None]) -> Recipe:
    """The recipe with files in place of the data sets that it names.

    Args:
        recipe: Names files, data sets or both.
        kept: Folder of an earlier draw, which is used if the recipe still asks for it.
        place: Folder to draw into otherwise.
        say: Told what was drawn.

    Raises:
        RpamError: A data set can't be had or is too small; or the file to measure on can't be read.
    """
    named = _named(recipe)
    if not named:
        return recipe
    asked = _asked(recipe)
    folder = kept if _holds(kept, asked) else place
    if folder is place and not _holds(place, asked):
        _draw(recipe, named, asked, place, say)
    return _replaced(recipe, folder)


def with_kept(recipe: Recipe, kept: Path) -> Recipe:
    """The recipe with the files of an earlier draw, to look at; with names of files that are not there without one."""
    there = _holds(kept, _asked(recipe)) if kept.is_dir() else False
    folder = kept if there else kept / "not drawn"
    return _replaced(recipe, folder)


def _replaced(recipe: Recipe, folder: Path) -> Recipe:
    sections = {
        section: getattr(recipe, section).model_copy(update={"questions": folder / _FILES[section]})
        for section in _named(recipe)
    }
    return recipe.model_copy(update=sections)


def _named(recipe: Recipe) -> dict[str, QuestionSets]:
    """The data sets by section; a section with a file is not among them."""
    sections = {"label": recipe.label.questions, "eval": recipe.eval.questions}
    return {section: sets for section, sets in sections.items() if isinstance(sets, dict)}


def _asked(recipe: Recipe) -> dict[str, Any]:
    """All that a draw depends on, as JSON holds it."""
    from rpam_lite.pipeline.stage import identity

    told = {"label": recipe.label.questions, "eval": recipe.eval.questions}
    parts = {
        s: q if isinstance(q, dict) else identity(q) for s, q in told.items() if s == "eval" or isinstance(q, dict)
    }
    return {**parts, "seed": recipe.seed}


def _holds(folder: Path, asked: dict[str, Any]) -> bool:
    """Whether a folder holds this draw, whole."""
    record = folder / RECORD
    if not record.exists():
        return False
    told = read_json(record, "the record of the questions")
    files = [folder / _FILES[section] for section in told.get("sets", {})]
    return told.get("version") == SETS_VERSION and told.get("asked") == asked and all(f.is_file() for f in files)


def _draw(
    recipe: Recipe, named: dict[str, QuestionSets], asked: dict[str, Any], folder: Path, say: Callable[[str], None]
) -> None:
    from quant.tasks.questions import read_task_file
    from rpam_lite.preflight.questions import task_file

    tasks = _load(named)
    # Whole sets: what was not drawn of one may be measured another time.
    measured = (
        [question for task in tasks["eval"] for question in task.questions]
        if "eval" in tasks
        else read_task_file(task_file(recipe.eval))
    )
    told: dict[str, list[dict[str, Any]]] = {}
    for section, sets in named.items():
        grader = getattr(recipe, section).grader
        rows: list[dict[str, Any]] = []
        told[section] = []
        for task, (name, size) in zip(tasks[section], sets.items(), strict=True):
            found = _take(task, size, recipe.seed, measured if section == "label" else [], grader)
            rows += [_row(question, task.name) for question in found.questions]
            told[section].append(_record(task, found))
            say(_told(_FILES[section], name, task, found))
        write_text(folder / _FILES[section], "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    write_json(folder / RECORD, {"version": SETS_VERSION, "asked": asked, "sets": told})


def _load(named: dict[str, QuestionSets]) -> dict[str, list[Task]]:
    """The tasks of every section; what can't be had is told at once."""
    from quant.tasks.catalog import load_tasks

    tasks: dict[str, list[Task]] = {section: [] for section in named}
    missing = []
    for section, sets in named.items():
        for name in sets:
            try:
                tasks[section] += load_tasks([name])
            except RpamError as error:
                missing.append(error)
    if missing:
        raise RpamError("\n".join(dict.fromkeys(str(error) for error in missing)), code=missing[0].code)
    return tasks


def _take(task: Task, size: int | None, seed: int, measured: Sequence[Question], grader: str) -> Drawn:
    """The first `size` questions of a set in an order that depends on the seed alone; so that more begin with the same.

    Raises:
        RpamError: The set has not so many.
    """
    from quant.tasks.grader import is_gradable
    from rpam_lite.preflight.overlap import overlaps

    same = {overlap.calibration.key for overlap in overlaps(task.questions, measured)} if measured else set()
    order = random.Random(f"{seed}/{task.name}").sample(task.questions, len(task.questions))
    wanted = len(order) if size is None else size
    taken: list[Question] = []
    overlapping = ungradable = 0
    for question in order:
        if len(taken) == wanted:
            break
        if question.key in same:
            overlapping += 1
        elif not is_gradable(question.answer, grader):
            ungradable += 1
        else:
            taken.append(question)
    if size is not None and len(taken) < size:
        raise RpamError(
            f"{task.name}: {size} questions are wanted of {len(order)}, of which {overlapping} are measured too and "
            f"{ungradable} can't be graded; ask for {len(taken)} or fewer."
        )
    return Drawn(taken, overlapping, ungradable)


def _row(question: Question, name: str) -> dict[str, Any]:
    row = {"question": question.question, "answer": question.answer, "level": question.level}
    return {
        **row,
        **({"tolerance": question.tolerance} if question.tolerance else {}),
        "set": name,
        "key": question.key,
    }


def _record(task: Task, found: Drawn) -> dict[str, Any]:
    return {
        "set": task.name,
        "source": task.source,
        "licence": task.licence,
        "of": len(task.questions),
        "digest": task.digest,
        "drawn": len(found.questions),
        "overlapping": found.overlapping,
        "ungradable": found.ungradable,
    }


def _told(file: str, name: str, task: Task, found: Drawn) -> str:
    passed = [
        f"{count} {why}"
        for count, why in ((found.overlapping, "measured too"), (found.ungradable, "that can't be graded"))
        if count
    ]
    over = f"; passed over: {', '.join(passed)}" if passed else ""
    return (
        f"{file}: {len(found.questions)} of {len(task.questions)} questions of {name} ({task.source}; "
        f"licence: {task.licence}){over}"
    )
