"""The families of questions that pairs are trained on."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from recipes.tiny import arithmetic, cups, phases
from recipes.tiny.splits import Split


@dataclass(frozen=True)
class Family:
    """One kind of question.

    Attributes:
        name: What it is called.
        grader: How its answers are graded.
        draw: A problem, with `level` and `answer`; the last number is the largest start value of arithmetic.
        ask: The problem in words.
        long_sample: A long answer whose words the tokenizer learns.
        phases: The training runs, by name.
    """

    name: str
    grader: str
    draw: Callable[[random.Random, int, Split, int], Any]
    ask: Callable[[Any, random.Random], str]
    long_sample: Callable[[Any], str]
    phases: dict[str, phases.Phase]


def _draw_swaps(rng: random.Random, level: int, split: Split, max_start: int) -> cups.Swaps:
    return cups.draw_swaps(rng, level, split)


ARITHMETIC = Family(
    "arithmetic",
    "math",
    arithmetic.draw_problem,
    arithmetic.ask,
    arithmetic.rewriting_response,
    phases.ARITHMETIC,
)
CUPS = Family("cups", "exact", _draw_swaps, cups.ask, cups.long_response, phases.CUPS)
FAMILIES = {family.name: family for family in (ARITHMETIC, CUPS)}
