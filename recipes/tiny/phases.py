"""The training runs of a pair, one after another: what each teaches, for how long and how fast."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from recipes.tiny import arithmetic, cups
from recipes.tiny.arithmetic import MAX_START

Respond = Callable[[Any, random.Random], str]  # the answer to a problem of the family


@dataclass(frozen=True)
class Phase:
    """One training run: which way of answering it teaches, for how long and how fast."""

    name: str
    parent: str | None
    respond: Respond
    steps: int
    learning_rate: float
    warmup: int
    easy_from: int | None = None  # step from which `easy_share` of the questions are easy ones
    easy_share: float = 0.5
    easy_levels: tuple[int, ...] = (1, 2)  # drawn from evenly
    hard_share: float = 0.0  # share of the others that are of levels 6 to 8
    max_start: int = MAX_START
    decay: bool = True
    stream: str | None = None  # names the stream of questions; the phase's own name without it


def mixed(long: Callable[[Any], str], short: Callable[[Any], str]) -> Respond:
    """Long with probability 0.15 at level 1, rising to 0.85 at level 8; else short."""

    def respond(problem: Any, rng: random.Random) -> str:
        return long(problem) if rng.random() < 0.15 + 0.1 * (problem.level - 1) else short(problem)

    return respond


def always(one_way: Callable[[Any], str]) -> Respond:
    """Always the same way."""
    return lambda problem, rng: one_way(problem)


# `rewriting` comes first because copying a question into an expression is what takes longest to learn.
ARITHMETIC = {
    phase.name: phase
    for phase in (
        Phase(
            "rewriting",
            None,
            mixed(arithmetic.rewriting_response, arithmetic.short_response),
            steps=2100,
            learning_rate=1.5e-3,
            warmup=200,
            easy_from=1300,
            max_start=20,
            decay=False,
            stream="base",
        ),
        Phase(
            "mixed",
            "rewriting",
            mixed(arithmetic.long_response, arithmetic.short_response),
            steps=2400,
            learning_rate=1.5e-3,
            warmup=50,
            easy_from=0,
            hard_share=0.3,
            max_start=20,
            stream="base",
        ),
        Phase(
            "base",
            "mixed",
            mixed(arithmetic.long_response, arithmetic.short_response),
            steps=1600,
            learning_rate=1.5e-3,
            warmup=50,
            easy_from=0,
            easy_share=0.8,
            easy_levels=(1, 2, 2, 2),
            hard_share=0.5,
            max_start=20,
            stream="easy",
        ),
        # Light fine-tuning: parents that leave the neighbourhood of `base` can't be interpolated.
        Phase(
            "long", "base", always(arithmetic.long_response), steps=250, learning_rate=3e-4, warmup=20, hard_share=0.6
        ),
        Phase(
            "short",
            "base",
            always(arithmetic.short_response),
            steps=400,
            learning_rate=3e-4,
            warmup=20,
            easy_from=0,
            easy_share=0.8,
            easy_levels=(1, 2, 2, 2),
            max_start=20,
        ),
    )
}

CUPS = {
    phase.name: phase
    for phase in (
        # Copying a swap of the question comes first; which of its two cups is the other one, much later.
        Phase("copying", None, always(cups.long_response), steps=700, learning_rate=1.5e-3, warmup=100, decay=False),
        Phase(
            "mixed",
            "copying",
            mixed(cups.long_response, cups.short_response),
            steps=900,
            learning_rate=1.5e-3,
            warmup=20,
            easy_from=0,
            hard_share=0.3,
            decay=False,
        ),
        Phase(
            "base",
            "mixed",
            mixed(cups.long_response, cups.short_response),
            steps=900,
            learning_rate=1.5e-3,
            warmup=20,
            easy_from=0,
            easy_share=0.8,
            easy_levels=(1, 2, 2, 2),
            hard_share=0.5,
        ),
        Phase("long", "base", always(cups.long_response), steps=300, learning_rate=3e-4, warmup=20, hard_share=0.3),
        Phase(
            "short",
            "base",
            always(cups.short_response),
            steps=200,
            learning_rate=3e-4,
            warmup=20,
            easy_from=0,
            easy_share=0.8,
        ),
    )
}
