"""A user's questions: JSON lines or CSV with `question`, `answer` and, optionally, `level`.

JSON lines may have a `tolerance` as well: the absolute error up to which a number is right.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quant.tasks.grader import is_gradable
from rpam_lite.errors import RpamError


@dataclass(frozen=True)
class Question:
    """One question with its gold answer.

    Attributes:
        key: Unique within its task.
        question: As the model is asked.
        answer: The gold answer.
        level: Difficulty, 0 where none is given.
        tolerance: Absolute error up to which a number is right.
    """

    key: str
    question: str
    answer: str
    level: int = 0
    tolerance: float = 0.0


@dataclass(frozen=True)
class TaskFile:
    """A user's file of questions, and how it is read and graded.

    Attributes:
        path: A `.csv` with a header line, or JSON lines.
        question: Field of the question.
        answer: Field of the gold answer.
        level: Field of the difficulty, a whole number; it may be missing as long as it has this default name.
        grader: As for `quant.tasks.grader.grade`.
        pattern: Of the grader `regex`.
        instruction: Added to every question, on a line of its own.
    """

    path: Path
    question: str = "question"
    answer: str = "answer"
    level: str = "level"
    grader: str = "math"
    pattern: str = ""
    instruction: str = ""


def load_questions(path: Path) -> list[Question]:
    """Read a question file; keys are line numbers, so that records stay readable.

    Raises:
        RpamError: Missing file, wrong encoding, or a line that is no question; the message names it.
    """
    return read_task_file(TaskFile(path))


def read_task_file(file: TaskFile) -> list[Question]:
    """Read a question file with fields of any name.

    Raises:
        RpamError: Missing file, wrong encoding, or a line that is no question; the message names it.
    """
    rows = read_rows(file.path)
    questions = [_to_question(row, file, f"{file.path}, line {line}", str(line)) for line, row in rows]
    if not questions:
        content = "a header and one question a line" if file.path.suffix == ".csv" else "one JSON object a line"
        raise RpamError(f"{file.path}: holds no question; write {content}.")
    return questions


def read_rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Line numbers and rows of JSON lines, or of a `.csv` with a header.

    Raises:
        RpamError: Missing file, wrong encoding, or a line that is no row; the message names it.
    """
    try:
        # Excel and Notepad put a byte-order mark before UTF-8.
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise RpamError(f"{path}: no such question file; check its path (in a recipe: the `questions` keys).") from None
    except UnicodeDecodeError as error:
        raise RpamError(f"{path}: is not UTF-8 text (byte {error.start}); save it as UTF-8.") from None
    except OSError as error:
        raise RpamError(f"{path}: can't be read ({error.strerror}); name a file of questions.") from None
    return _csv_rows(text, path) if path.suffix == ".csv" else _json_rows(text, path)


def _as_number(text: str) -> float | str:
    """A number of a CSV; none is 0, and what is no number stays as it is."""
    try:
        return float(text or 0)
    except ValueError:
        return text


def _json_rows(text: str, path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for n, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            what = f"is not valid JSON ({error.msg}, column {error.colno})"
            raise RpamError(f"{path}, line {n}: {what}; mend or delete it.") from None
        if not isinstance(row, dict):
            raise RpamError(f"{path}, line {n}: is not a JSON object with `question` and `answer`.")
        yield n, row


def _csv_rows(text: str, path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in reader:
            if None in row:
                raise RpamError(
                    f"{path}, line {reader.line_num}: has more fields than the header; "
                    "put text with commas in double quotes."
                )
            yield reader.line_num, row
    except csv.Error as error:
        raise RpamError(f"{path}, line {reader.line_num}: is not valid CSV ({error}); mend it.") from None


def _to_question(row: Mapping[str, Any], file: TaskFile, place: str, key: str) -> Question:
    answer = row.get(file.answer)
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        row = {**row, file.answer: str(answer)}
    for field in (file.question, file.answer):
        if not isinstance(row.get(field), str) or not row[field].strip():
            has = "" if field in row else f" (the fields are: {', '.join(row)})"
            raise RpamError(f"{place}: `{field}` is {row.get(field)!r}; it must be text{has}.")
    if file.level not in row and file.level != TaskFile.level:
        raise RpamError(f"{place}: has no field `{file.level}`, which is to hold the level; add it.")
    level = row.get(file.level, 0)
    if isinstance(level, str) and file.path.suffix == ".csv":  # all is text there
        level = int(level) if level.strip().isdecimal() else level.strip() or 0
    if not isinstance(level, int) or isinstance(level, bool):
        raise RpamError(f"{place}: `{file.level}` is {level!r}; it must be a whole number.")
    answer = row[file.answer].strip()
    if not is_gradable(answer, file.grader):
        give = "one letter from A to J" if file.grader == "choice" else "a number or an expression"
        raise RpamError(f"{place}: the answer {row[file.answer]!r} can't be graded; give {give}.")
    tolerance = row.get("tolerance", 0.0)
    if isinstance(tolerance, str) and file.path.suffix == ".csv":
        tolerance = _as_number(tolerance)
    if isinstance(tolerance, bool) or not isinstance(tolerance, int | float) or tolerance < 0:
        raise RpamError(f"{place}: `tolerance` is {tolerance!r}; it must be a number, 0 or more.")
    question = f"{row[file.question]}\n{file.instruction}" if file.instruction else row[file.question]
    return Question(key, question, answer, level, tolerance)
