"""A task: questions, the grader of their answers, and where both come from."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

from quant.tasks.grader import Verdict, check_grader, grade
from quant.tasks.questions import Question
from quant.tasks.workers import WORKERS
from rpam_lite.errors import RpamError


@dataclass(frozen=True)
class Task:
    """Questions and the grader of their answers.

    Attributes:
        name: Of the task; records are kept under it.
        questions: As the model is asked, instruction included.
        grader: As for `quant.tasks.grader.grade`.
        pattern: Of the grader `regex`.
        fallback: Whether `math` takes an answer without a box, which its verdict then tells.
        source: Where the questions come from: hub id, revision, config and split, or a file.
        licence: What is known of the licence of the questions.

    Raises:
        RpamError: There is no such grader, or a key occurs twice.
    """

    name: str
    questions: list[Question]
    grader: str = "math"
    pattern: str = ""
    fallback: bool = True
    source: str = ""
    licence: str = ""

    def __post_init__(self) -> None:
        check_grader(self.grader, self.pattern)
        key, times = Counter(q.key for q in self.questions).most_common(1)[0] if self.questions else ("", 0)
        if times > 1:
            raise RpamError(f"task {self.name}: the question key {key!r} occurs {times} times; make it unique.")

    def grade(self, text: str, question: Question, truncated: bool = False, think_open: bool = False) -> Verdict:
        """Grade one generated text; `think_open` tells that the prompt had opened the think block."""
        return grade(
            text,
            question.answer,
            truncated,
            think_open,
            self.fallback,
            self.grader,
            self.pattern,
            question.tolerance,
        )

    def grade_many(self, answers: Sequence[tuple[str, Question, bool]], think_open: bool = False) -> list[Verdict]:
        """Grade texts, each with its question and whether it was truncated, in several processes at once."""
        with ThreadPoolExecutor(WORKERS) as threads:
            return list(threads.map(lambda a: self.grade(a[0], a[1], a[2], think_open), answers))

    @property
    def digest(self) -> str:
        """Hash of the questions, their gold answers and instructions."""
        asked = json.dumps([asdict(question) for question in self.questions])
        return hashlib.sha256(asked.encode()).hexdigest()[:16]
