"""A task: questions, the grader of their answers, and where both come from."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass

from quant.tasks.grader import GRADER_VERSION, GRADERS, Verdict, check_grader, grade
from quant.tasks.questions import Question
from rpam_lite.errors import RpamError

# Text, question, whether the text was cut off, whether the prompt had opened the think block -> verdict.
Grade = Callable[[str, Question, bool, bool], Verdict]


@dataclass(frozen=True)
class Grading:
    """How answers are graded.

    Attributes:
        grade: The grader.
        tag: Changes when verdicts may; empty where nobody can tell, as with a user's own function.
    """

    grade: Grade
    tag: str


def _in_box(text: str, question: Question, truncated: bool, think_open: bool) -> Verdict:
    return grade(text, question.answer, truncated, think_open)


# The strict grader of labels and of the pipeline: an answer without a box is wrong.
IN_BOX = Grading(_in_box, f"{GRADER_VERSION} box")


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

    @property
    def grading(self) -> Grading:
        """Its grader, as records are told it."""
        tag = f"{GRADER_VERSION} {self.grader} {self.pattern} {self.fallback}" if self.grader in GRADERS else ""
        return Grading(self.grade, tag)

    @property
    def digest(self) -> str:
        """Hash of the questions, their gold answers and instructions."""
        asked = json.dumps([asdict(question) for question in self.questions])
        return hashlib.sha256(asked.encode()).hexdigest()[:16]
