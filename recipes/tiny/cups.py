"""A second family of questions: under which cup a thing lies after 1 to 8 swaps (the level), in plain English.

Nothing is counted here: a swap moves the thing where its cup takes part in it, and changes nothing
else. Two swaps can be followed in one's head; eight can't.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from recipes.tiny.splits import Split, split_of_text

CUPS = "ABCDEFGH"
MOVES = 0.75  # share of swaps that move the thing
THINGS = ["ball", "bean", "bell", "coin", "die", "key", "nut", "pea", "ring", "stone"]
OPENINGS = ["The {thing} is under cup {cup}.", "Cup {cup} hides the {thing}.", "A {thing} lies under cup {cup}."]
CLOSINGS = ["Where is the {thing}?", "Which cup hides the {thing} now?", "Under which cup is the {thing} in the end?"]


@dataclass(frozen=True)
class Swaps:
    """The cup over the thing at first, and which cups are swapped, one pair after another."""

    cup: str
    pairs: tuple[tuple[str, str], ...]

    @property
    def level(self) -> int:
        return len(self.pairs)

    @property
    def cups(self) -> list[str]:
        """The cup over the thing at the start and after every swap: level + 1 of them."""
        cups = [self.cup]
        for a, b in self.pairs:
            cups.append({a: b, b: a}.get(cups[-1], cups[-1]))
        return cups

    @property
    def answer(self) -> str:
        return self.cups[-1]


def split_of(problem: Swaps) -> Split:
    """The one split a problem belongs to, by a hash of its start and its swaps."""
    return split_of_text(f"{problem.cup}: {problem.pairs}")


def draw_swaps(rng: random.Random, level: int, split: Split) -> Swaps:
    """A random problem of this level and split."""
    while True:
        first = cup = rng.choice(CUPS)
        pairs = []
        for _ in range(level):
            others = [c for c in CUPS if c != cup]
            pair = [cup, rng.choice(others)] if rng.random() < MOVES else rng.sample(others, 2)
            if cup in pair:
                cup = pair[1]
            rng.shuffle(pair)
            pairs.append((pair[0], pair[1]))
        problem = Swaps(first, tuple(pairs))
        if split_of(problem) == split:
            return problem


def ask(problem: Swaps, rng: random.Random) -> str:
    """The problem in words, its swaps numbered."""
    thing = rng.choice(THINGS)
    sentences = [rng.choice(OPENINGS).format(cup=problem.cup, thing=thing)]
    sentences += [f"{n}. Swap {a} and {b}." for n, (a, b) in enumerate(problem.pairs, 1)]
    sentences.append(rng.choice(CLOSINGS).format(thing=thing))
    return " ".join(sentences)


def short_response(problem: Swaps) -> str:
    """The Short-CoT way: the answer at once."""
    return f"\\boxed{{{problem.answer}}}"


def long_response(problem: Swaps) -> str:
    """The Long-CoT way: every swap between the cups before and after it inside <think>, the cups again as a check."""
    cups = problem.cups
    lines = [f"{n}. Swap {a} and {b}: {cups[n - 1]} to {cups[n]}" for n, (a, b) in enumerate(problem.pairs, 1)]
    checks = [f"{n}. {cup}" for n, cup in enumerate(cups[1:], 1)]
    body = "\n".join([*lines, "Let me check.", *checks, "Yes."])
    return f"<think>\n{body}\n</think>\n\n{short_response(problem)}"
