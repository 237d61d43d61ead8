"""A second family of questions: who holds a thing after 1 to 8 trades (the level), in plain English.

Nothing is counted here: a trade hands the thing on where its holder takes part in it, and changes
nothing else. Two trades can be followed in one's head; eight can't.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from recipes.tiny.splits import Split, split_of_text

PEOPLE = ["Anna", "Mia", "Sara", "Lena", "Rosa", "Nora", "Tom", "Ben", "Paul", "Omar", "Ivan", "Luke"]
PLAYERS = 6  # of these people take part in one question
MOVES = 0.75  # share of trades that the holder takes part in
THINGS = ["ball", "book", "coin", "card", "pen", "shell", "stamp", "cup", "key", "egg"]
OPENINGS = ["{holder} has the {thing}.", "The {thing} is with {holder}.", "{holder} starts with the {thing}."]
CLOSINGS = ["Who has the {thing} now?", "Who has the {thing} in the end?", "With whom is the {thing}?"]


@dataclass(frozen=True)
class Trades:
    """Who holds the thing first, and who trades with whom, one after another."""

    holder: str
    pairs: tuple[tuple[str, str], ...]

    @property
    def level(self) -> int:
        return len(self.pairs)

    @property
    def holders(self) -> list[str]:
        """The holder at the start and after every trade: level + 1 of them."""
        holders = [self.holder]
        for a, b in self.pairs:
            holders.append({a: b, b: a}.get(holders[-1], holders[-1]))
        return holders

    @property
    def answer(self) -> str:
        return self.holders[-1]


def split_of(problem: Trades) -> Split:
    """The one split a problem belongs to, by a hash of its start and its trades."""
    return split_of_text(f"{problem.holder}: {problem.pairs}")


def draw_trades(rng: random.Random, level: int, split: Split) -> Trades:
    """A random problem of this level and split."""
    while True:
        players = rng.sample(PEOPLE, PLAYERS)
        first = holder = players[0]
        pairs = []
        for _ in range(level):
            others = [p for p in players if p != holder]
            pair = [holder, rng.choice(others)] if rng.random() < MOVES else rng.sample(others, 2)
            if holder in pair:
                holder = pair[1]
            rng.shuffle(pair)
            pairs.append((pair[0], pair[1]))
        problem = Trades(first, tuple(pairs))
        if split_of(problem) == split:
            return problem


def ask(problem: Trades, rng: random.Random) -> str:
    """The problem in words, its trades numbered."""
    thing = rng.choice(THINGS)
    sentences = [rng.choice(OPENINGS).format(holder=problem.holder, thing=thing)]
    sentences += [f"{n}. {a} and {b} trade." for n, (a, b) in enumerate(problem.pairs, 1)]
    sentences.append(rng.choice(CLOSINGS).format(thing=thing))
    return " ".join(sentences)


def short_response(problem: Trades) -> str:
    """The Short-CoT way: the answer at once."""
    return f"\\boxed{{{problem.answer}}}"


def long_response(problem: Trades) -> str:
    """The Long-CoT way: every trade and its holder inside <think>, the holders again as a check, the answer."""
    holders = problem.holders
    lines = [f"{n}. {a} and {b}: {h}" for n, ((a, b), h) in enumerate(zip(problem.pairs, holders[1:], strict=True), 1)]
    checks = [f"{n}. {h}" for n, h in enumerate(holders[1:], 1)]
    body = "\n".join([*lines, "Let me check.", *checks, "Yes."])
    return f"<think>\n{body}\n</think>\n\n{short_response(problem)}"
