"""A user's questions: JSON lines with `question`, `answer` and, optionally, `level`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from quant.tasks.grader import is_gradable
from rpam_lite.errors import RpamError


@dataclass(frozen=True)
class Question:
    """One question with its gold answer; `level` is its difficulty, 0 where none is given."""

    key: str
    question: str
    answer: str
    level: int = 0


def load_questions(path: Path) -> list[Question]:
    """Read a question file; keys are line numbers, so that records stay readable.

    Raises:
        RpamError: Missing file, wrong encoding, or a line that is no question; the message names it.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        raise RpamError(f"{path}: no such question file; check the `questions` keys of the recipe.") from None
    except UnicodeDecodeError as error:
        raise RpamError(f"{path}: is not UTF-8 text (byte {error.start}); save it as UTF-8.") from None
    questions = [_parse(line, f"{path}, line {n}", str(n)) for n, line in enumerate(lines, 1) if line.strip()]
    if not questions:
        raise RpamError(f"{path}: holds no question; write one JSON object a line.")
    return questions


def _parse(line: str, place: str, key: str) -> Question:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise RpamError(f"{place}: is not valid JSON ({error.msg}, column {error.colno}); mend or delete it.") from None
    if not isinstance(row, dict):
        raise RpamError(f"{place}: is not a JSON object with `question` and `answer`.")
    for field in ("question", "answer"):
        if not isinstance(row.get(field), str) or not row[field].strip():
            raise RpamError(f"{place}: `{field}` is {row.get(field)!r}; it must be text.")
    level = row.get("level", 0)
    if not isinstance(level, int):
        raise RpamError(f"{place}: `level` is {level!r}; it must be a whole number.")
    if not is_gradable(row["answer"]):
        raise RpamError(f"{place}: the answer {row['answer']!r} can't be graded; give a number or an expression.")
    return Question(key, row["question"], row["answer"].strip(), level)
