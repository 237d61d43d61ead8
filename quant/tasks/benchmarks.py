"""The public benchmarks: where they live on the hub, and what their columns mean.

The licences are what the data cards say; where they are silent, nothing is bundled or republished, and
neither is anything else: all are downloaded when they are used.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from quant.tasks.extract import last_boxed
from quant.tasks.questions import Question
from rpam_lite.errors import RpamError

MATH_INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."
CHOICE_INSTRUCTION = "Please reason step by step, and put the letter of your final answer within \\boxed{}."
LETTERS = "ABCDEFGHIJ"
# Of the order of the choices. Never changed: records of before would be of other questions.
_SEED = 0


def _text(value: Any) -> str:
    """Some sets hold numbers, and AMC23 holds 27 as 27.0."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip()


def _after_hashes(value: Any) -> str:
    """GSM8K: a worked solution, its last line `#### 1,234`."""
    return _text(value).rpartition("####")[2].replace(",", "").strip()


def _in_last_box(value: Any) -> str:
    """MATH: a worked solution with the answer in its last box, now and then written `\\fbox{..}` or `\\boxed 2`."""
    text = _text(value).replace("\\fbox{", "\\boxed{")
    bare = re.findall(r"\\boxed\s+(\w)", text)
    return (last_boxed(text) or (bare[-1] if bare else "")).strip()


def _joined(value: Any) -> str:
    """OlympiadBench: a list of answers, each of which may be several, between dollar signs."""
    answers = value if isinstance(value, list) else [value]
    return ", ".join(_text(answer).replace("$", "").strip().rstrip(".") for answer in answers)


@dataclass(frozen=True)
class Benchmark:
    """A data set of the hub.

    Attributes:
        name: Of the task.
        hub: Id on the hub.
        split: Of the data set.
        licence: As far as known.
        config: Of the data set, if it has several.
        question: Column of the question.
        answer: Column of the gold answer.
        key: Column of a unique key; row numbers are keys without one.
        level: Column of the difficulty.
        context: Column of a text before the question, which may be empty.
        tolerance: Column of the absolute error that is right, which may be empty.
        wrong: Columns of the wrong choices.
        gold: Makes the gold answer of what stands in its column.
        size: Number of questions.
        gaps: Whether some rows tell no gold answer in a form that is known; they are left out.
    """

    name: str
    hub: str
    split: str
    licence: str
    size: int
    config: str = ""
    question: str = "problem"
    answer: str = "answer"
    key: str = ""
    level: str = ""
    context: str = ""
    tolerance: str = ""
    wrong: tuple[str, ...] = ()
    gold: Callable[[Any], str] = _text
    gaps: bool = False

    @property
    def grader(self) -> str:
        return "choice" if self.wrong else "math"

    @property
    def file(self) -> str:
        """Name of a local copy with the same columns, as JSON lines."""
        return f"{self.name.removesuffix(f'-{self.split}')}_{self.split}.jsonl"


_GSM8K = Benchmark("gsm8k", "openai/gsm8k", "test", "MIT", 1319, config="main", question="question", gold=_after_hashes)
# All 12,500 problems in the split of their authors; the questions of math500 are among its test ones.
_MATH = Benchmark(
    "math",
    "DigitalLearningGmbH/MATH-lighteval",
    "test",
    "MIT",
    5000,
    answer="solution",
    level="level",
    gold=_in_last_box,
    gaps=True,
)

BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        _GSM8K,
        Benchmark(
            "math500",
            "HuggingFaceH4/MATH-500",
            "test",
            "none on the card",
            500,
            key="unique_id",
            level="level",
        ),
        Benchmark("aime24", "HuggingFaceH4/aime_2024", "train", "none on the card", 30, key="id"),
        Benchmark("aime25", "math-ai/aime25", "test", "none on the card", 30, key="id"),
        Benchmark("amc23", "math-ai/amc23", "test", "none on the card", 40, question="question", key="id"),
        Benchmark("minerva", "math-ai/minervamath", "test", "none on the card", 272, question="question"),
        Benchmark(
            "olympiadbench",
            "Hothan/OlympiadBench",
            "train",
            "Apache-2.0",
            674,
            config="OE_TO_maths_en_COMP",
            question="question",
            answer="final_answer",
            key="id",
            context="context",
            tolerance="error",
            gold=_joined,
        ),
        Benchmark(
            "gpqa",
            "Idavidrein/gpqa",
            "train",
            "CC-BY-4.0, gated; its questions may not be shown in public",
            198,
            config="gpqa_diamond",
            question="Question",
            answer="Correct Answer",
            key="Record ID",
            wrong=("Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3"),
        ),
        _MATH,
        # To calibrate on.
        replace(_GSM8K, name="gsm8k-train", split="train", size=7473),
        replace(_MATH, name="math-train", split="train", size=7500),
    )
}
# As people write them; spaces, hyphens, underscores, colons and case do not count.
ALIASES = {
    "gpqadiamond": "gpqa",
    "minervamath": "minerva",
    "aime2024": "aime24",
    "aime2025": "aime25",
    "gsm8ktrain": "gsm8k-train",
    "gsm8ktest": "gsm8k",
    "mathtrain": "math-train",
    "mathtest": "math",
}


def benchmark_named(name: str) -> Benchmark | None:
    """The benchmark of a name as a person writes it, as MATH-500 or gsm8k:train; None if there is none."""
    plain = "".join(letter for letter in name.casefold() if letter.isalnum())
    return BENCHMARKS.get(ALIASES.get(plain, plain))


def without_instruction(question: str) -> str:
    """The question itself, where one of our instructions stands behind it."""
    return question.removesuffix(f"\n{MATH_INSTRUCTION}").removesuffix(f"\n{CHOICE_INSTRUCTION}")


def to_question(benchmark: Benchmark, row: Mapping[str, Any], number: int) -> Question | None:
    """Make a question of a row; `number` counts from 1. None where one of `gaps` tells no gold answer.

    Raises:
        RpamError: A column is missing or empty: the data set has changed.
    """
    columns = [getattr(benchmark, field) for field in ("question", "answer", "key", "level", "context", "tolerance")]
    place = f"{benchmark.hub}, row {number}"
    for column in filter(None, [*columns, *benchmark.wrong]):
        if column not in row:
            raise RpamError(
                f"{place}: has no column {column!r}, only {', '.join(row)}; "
                f"name an older revision, as in {benchmark.name}@REVISION."
            )
    gold = benchmark.gold(row[benchmark.answer])
    if not gold and benchmark.gaps:
        return None
    if not gold:
        raise RpamError(f"{place}: has no gold answer; name an older revision, as in {benchmark.name}@REVISION.")
    # A slash parts the key of a question from the number of a sample.
    key = _text(row[benchmark.key]).replace("/", "-") if benchmark.key else str(number)
    question = _text(row[benchmark.question])
    instruction = MATH_INSTRUCTION
    if benchmark.context and row[benchmark.context]:
        question = f"{_text(row[benchmark.context])}\n{question}"
    if benchmark.wrong:
        # Shuffled by the key, so that an order does not depend on the rows before it.
        choices = [gold, *(_text(row[column]) for column in benchmark.wrong)]
        order = random.Random(f"{_SEED}/{key}").sample(range(len(choices)), len(choices))
        listed = "\n".join(f"{letter}) {choices[i]}" for letter, i in zip(LETTERS, order, strict=False))
        question, gold, instruction = f"{question}\n\n{listed}\n", LETTERS[order.index(0)], CHOICE_INSTRUCTION
    return Question(
        key,
        f"{question}\n{instruction}",
        gold,
        _level(row[benchmark.level]) if benchmark.level else 0,
        _tolerance(row[benchmark.tolerance]) if benchmark.tolerance else 0.0,
    )


def _level(value: Any) -> int:
    """3, or "Level 3"; 0 where it is "Level ?"."""
    digits = re.search(r"\d+", _text(value))
    return int(digits[0]) if digits else 0


def _tolerance(value: Any) -> float:
    """OlympiadBench: "1e-1", or one for each answer with commas between; the widest counts for all."""
    return max((float(part) for part in _text(value or "").split(",") if part.strip()), default=0.0)
