"""From the graded samples of both parents to a pattern label: the rules, as pure functions.

Every rule reads the same: how often each parent was right, and its mean tokens, among k answers each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

Pattern = Literal["long", "short"]
RuleName = Literal["strict", "release", "ada-r1", "cost"]


@dataclass(frozen=True)
class Score:
    """One parent on one question: right answers among its k, and their mean tokens (not read by every rule)."""

    right: int
    tokens: float = 0.0


@dataclass(frozen=True)
class Rule:
    """A rule by its name.

    Attributes:
        name: As the recipe calls it.
        decide: Long's score, Short's score and k to the label, or None: the question is dropped.
        reads_tokens: Whether mean tokens can change its label.
    """

    name: RuleName
    decide: Callable[[Score, Score, int], Pattern | None]
    reads_tokens: bool


def strict(long: Score, short: Score, samples: int) -> Pattern | None:
    """Long only if its accuracy is higher by more than 1/(2k); ties go to Short, which is cheaper.

    Token counts play no part: a Long parent that is better and happens to be shorter is still long.
    None where neither was ever right: such a question teaches nothing.
    """
    if long.right == short.right == 0:
        return None
    return _wins(long, short, samples)


def ada_r1(long: Score, short: Score, samples: int) -> Pattern | None:
    """The group-level preference of Ada-R1 (arXiv 2504.21659): Long if E_L - E_S > 1/(2k), else Short.

    As `strict`, but nothing is dropped: what neither parent can do is not worth a long answer either.
    """
    return _wins(long, short, samples)


def release(long: Score, short: Score, samples: int) -> Pattern | None:
    """As the RPAM release computes it, with its defect, to compare with.

    With rel = acc_L - acc_S - 1/(2k) and dlen = (len_L - len_S) / len_S,

        gain = rel / dlen       if rel > 0,
               rel * dlen / 10  otherwise;          long if gain > 0.

    A Long parent that is shorter than Short makes dlen negative and turns the label round: better and
    shorter becomes short, worse and shorter becomes long. None where neither was ever right.
    """
    if long.right == short.right == 0:
        return None
    # Only signs count, so nothing is divided by a dlen of 0, at which "better" is long.
    better, shorter = _wins(long, short, samples) == "long", long.tokens < short.tokens
    return "long" if better != shorter else "short"


def cost(long: Score, short: Score, samples: int, price: float) -> Pattern | None:
    """Long only if its accuracy pays for its tokens: accuracy - price * tokens is higher than Short's.

    Accuracy in points (0 to 100), price in points per 1000 tokens; ties go to Short. None where the
    parent that is worth more was never right: there is no right answer to learn from.
    """
    gain = 100 * (long.right - short.right) / samples
    pays = gain > price * (long.tokens - short.tokens) / 1000
    if (long if pays else short).right == 0:
        return None
    return "long" if pays else "short"


def rule_of(name: RuleName, price: float = 0.0) -> Rule:
    """The rule of this name; `price` is read by `cost` alone."""
    if name == "cost":
        return Rule(name, partial(cost, price=price), reads_tokens=True)
    decide = {"strict": strict, "release": release, "ada-r1": ada_r1}[name]
    return Rule(name, decide, reads_tokens=name == "release")


def _wins(long: Score, short: Score, samples: int) -> Pattern:
    return "long" if (long.right - short.right) / samples > 1 / (2 * samples) else "short"
