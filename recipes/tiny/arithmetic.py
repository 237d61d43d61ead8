"""The questions of the embedded pair: arithmetic in plain English, with a difficulty level.

A problem is a start value and 1 to 8 operations (its level), each adding or taking away 1 to 9,
with every running total between 0 and 29: one operation is easy to learn, eight in one's head are
not. The same problem can be put as a word problem or as a bare expression (`7+5-3`).
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from recipes.tiny.splits import Split, split_of_text

MAX_START, MAX_TOTAL, MAX_OPERAND = 9, 29, 9

NAMES = {
    **dict.fromkeys(["Anna", "Mia", "Sara", "Lena", "Rosa", "Nora"], "She"),
    **dict.fromkeys(["Tom", "Ben", "Paul", "Omar", "Ivan", "Luke"], "He"),
}
THINGS = ["apples", "books", "coins", "cards", "pens", "shells", "stamps", "cups", "keys", "eggs"]
OPENINGS = [
    "{name} has {n} {things}.",
    "{name} starts with {n} {things}.",
    "There are {n} {things} in the box of {name}.",
    "In the morning {name} has {n} {things}.",
]
GAINS = [
    "{who} buys {k} more.",
    "{who} finds {k} more.",
    "{other} gives {name} {k}.",
    "Then {who_lower} gets {k}.",
    "{k} more are added.",
]
LOSSES = [
    "{who} loses {k}.",
    "{who} gives {k} to {other}.",
    "Then {who_lower} sells {k}.",
    "{other} takes {k}.",
    "{k} are lost.",
]
CLOSINGS = [
    "How many {things} does {name} have now?",
    "How many {things} are left?",
    "How many {things} are there in the end?",
]
BARE = [
    "What is {e}?",
    "Calculate {e}.",
    "{e} = ?",
    "Find the value of {e}.",
    "How much is {e}?",
]


@dataclass(frozen=True)
class Problem:
    """A start value and the signed operands applied to it one after another."""

    start: int
    operands: tuple[int, ...]

    @property
    def level(self) -> int:
        return len(self.operands)

    @property
    def totals(self) -> list[int]:
        """Running totals, the start value first: level + 1 of them."""
        totals = [self.start]
        for operand in self.operands:
            totals.append(totals[-1] + operand)
        return totals

    @property
    def answer(self) -> int:
        return self.totals[-1]

    @property
    def expression(self) -> str:
        return str(self.start) + "".join(f" {_sign(k)} {abs(k)}" for k in self.operands)


def split_of(problem: Problem) -> Split:
    """The one split a problem belongs to, by a hash of its expression."""
    return split_of_text(problem.expression)


def draw_problem(rng: random.Random, level: int, split: Split, max_start: int = MAX_START) -> Problem:
    """A random problem of this level and split."""
    while True:
        start = total = rng.randint(1, max_start)
        operands = []
        for _ in range(level):
            k = rng.choice([k for k in range(-MAX_OPERAND, MAX_OPERAND + 1) if k and 0 <= total + k <= MAX_TOTAL])
            operands.append(k)
            total += k
        problem = Problem(start, tuple(operands))
        if split_of(problem) == split:
            return problem


def ask(problem: Problem, rng: random.Random) -> str:
    """The problem in words, or (two times in five) as a bare expression."""
    if rng.random() < 0.4:
        return rng.choice(BARE).format(e=problem.expression)
    name, other = rng.sample(sorted(NAMES), 2)
    words = {
        "name": name,
        "other": other,
        "who": NAMES[name],
        "who_lower": NAMES[name].lower(),
        "things": rng.choice(THINGS),
    }
    sentences = [rng.choice(OPENINGS).format(n=problem.start, **words)]
    for k in problem.operands:
        sentences.append(rng.choice(GAINS if k > 0 else LOSSES).format(k=abs(k), **words))
    sentences.append(rng.choice(CLOSINGS).format(**words))
    return " ".join(sentences)


def short_response(problem: Problem) -> str:
    """The Short-CoT way: the answer at once."""
    return f"\\boxed{{{problem.answer}}}"


def remaining(problem: Problem) -> list[str]:
    """What is left of the expression before each step, and the answer last: `7+5-3`, `12-3`, `9`."""
    return [
        str(total) + "".join(f"{_sign(k)}{abs(k)}" for k in problem.operands[done:])
        for done, total in enumerate(problem.totals)
    ]


def steps(problem: Problem) -> list[str]:
    """One operation each: `7+5=12`, `12-3=9`."""
    totals = problem.totals
    return [
        f"{before}{_sign(k)}{abs(k)}={after}"
        for before, k, after in zip(totals, problem.operands, totals[1:], strict=False)
    ]


def long_response(problem: Problem) -> str:
    """The Long-CoT way: one operation at a time inside <think>, all checked again, then the answer.

    While more than one operation is left, the rest of the expression is written out before each step.
    """
    done = steps(problem)
    lines = [line for pair in zip(remaining(problem), done[:-1], strict=False) for line in pair] + done[-1:]
    return think(lines, done, problem)


def rewriting_response(problem: Problem) -> str:
    """A plainer long way, for early training: only what remains of the expression, line by line."""
    return think(remaining(problem), steps(problem), problem)


def think(lines: list[str], checks: list[str], problem: Problem) -> str:
    """A think block of these lines, the check after them, and the answer."""
    body = "\n".join([*lines, "Let me check.", *checks, "Yes."])
    return f"<think>\n{body}\n</think>\n\n{short_response(problem)}"


def _sign(operand: int) -> str:
    return "+" if operand > 0 else "-"
