"""When a question needs no more samples: its label is settled, or nearly so.

Both parents shall answer k times. After some answers, the number of right ones among those still to
come is unknown; with a uniform prior on a parent's accuracy it is Beta-binomial. From it follows with
which probability the label of all k answers will be this or that, and drawing stops when one label has
more than 1 - stop_probability.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import comb
from typing import Any

from rpam_lite.patterns.rule import Pattern, Rule, Score

Row = dict[str, Any]
# Short is drawn first, being cheap: after all its answers, one to three of Long's mostly settle the rest.
FIRST, SECOND = "short", "long"
_STEP = {FIRST: 4, SECOND: 1}


@dataclass(frozen=True)
class Drawn:
    """What one parent has answered so far: answers, right ones among them, and all their tokens."""

    count: int
    right: int
    tokens: int = 0


def drawn(rows: Sequence[Row]) -> Drawn:
    """Of graded samples."""
    return Drawn(len(rows), sum(bool(row["correct"]) for row in rows), sum(row["tokens"] for row in rows))


@dataclass(frozen=True)
class Forecast:
    """The likeliest label of all k samples, and at most how likely it is another one (0: it can't be)."""

    label: Pattern | None
    doubt: float


def forecast(rule: Rule, long: Drawn, short: Drawn, samples: int, max_tokens: int) -> Forecast:
    """What the label will be when both parents have answered `samples` times.

    Right answers: a parent that was right r times among m is right j times among its n = k - m answers to
    come with the probability of the Beta-binomial(n, 1 + r, 1 + m - r),

        C(j + r, r) * C(n - j + m - r, m - r) / C(n + m + 1, n),

    summed in integers. Tokens have no such model: a rule that reads them is taken to say a label only
    where it does so however long the answers to come are, from 1 to `max_tokens` tokens each.
    """
    if not rule.reads_tokens:
        # So that questions with the same counts share one computation.
        long, short = Drawn(long.count, long.right), Drawn(short.count, short.right)
    return _forecast(rule, long, short, samples, max_tokens if rule.reads_tokens else 0)


@lru_cache(maxsize=1 << 16)
def _forecast(rule: Rule, long: Drawn, short: Drawn, samples: int, max_tokens: int) -> Forecast:
    means = [_mean_tokens(parent, samples, max_tokens) for parent in (long, short)]
    ways: dict[Pattern | None, int] = {}
    for right_long, ways_long in enumerate(_ways(long, samples), long.right):
        for right_short, ways_short in enumerate(_ways(short, samples), short.right):
            # Rules compare the two means linearly: a label at all four corners is the label between them.
            labels = {
                rule.decide(Score(right_long, tokens_long), Score(right_short, tokens_short), samples)
                for tokens_long, tokens_short in product(*means)
            }
            if len(labels) == 1:
                label = labels.pop()
                ways[label] = ways.get(label, 0) + ways_long * ways_short
    total = sum(_ways(long, samples)) * sum(_ways(short, samples))
    if not ways:
        return Forecast(None, 1.0)
    label = max(ways, key=lambda name: ways[name])
    return Forecast(label, (total - ways[label]) / total)


def _ways(parent: Drawn, samples: int) -> list[int]:
    """Beta-binomial weights of 0, 1, ... right answers among those to come; they sum to C(k + 1, n)."""
    coming, wrong = samples - parent.count, parent.count - parent.right
    return [comb(j + parent.right, j) * comb(coming - j + wrong, wrong) for j in range(coming + 1)]


def _mean_tokens(parent: Drawn, samples: int, max_tokens: int) -> tuple[float, ...]:
    """The least and the most that its mean tokens can become."""
    coming = samples - parent.count
    ends = (parent.tokens + coming * min(1, max_tokens), parent.tokens + coming * max_tokens)
    return tuple(dict.fromkeys(end / samples for end in ends))


def is_settled(ahead: Forecast, long: Drawn, short: Drawn, stop_probability: float) -> bool:
    """Whether the label is sure enough, and a right answer of the parent that it names is there."""
    if ahead.doubt > 0 and ahead.doubt >= stop_probability:
        return False
    return ahead.label is None or {"long": long, "short": short}[ahead.label].right > 0


def draw_in_rounds(
    keys: Sequence[str],
    samples: int,
    draw: Mapping[str, Callable[[list[str]], list[Row]]],
    settled: Callable[[Sequence[Row], Sequence[Row]], bool] | None,
    parallel: int,
) -> dict[str, dict[str, list[Row]]]:
    """Have both parents answer every question, in numbered samples, until it is settled.

    What is drawn depends on the answers alone, so that an interrupted run goes on as it would have.
    One parent is done before the other begins: only one need be loaded.

    Args:
        keys: Of the questions.
        samples: Answers a question from each parent at most (k).
        draw: By parent: graded samples by their keys ("12/0"), in that order.
        settled: From Long's and Short's samples of one question; None draws all k.
        parallel: Sequences that an engine decodes side by side: a round has at least that many while it can.

    Returns:
        By parent and question the samples, in the order of their numbers from 0.
    """
    found: dict[str, dict[str, list[Row]]] = {parent: {key: [] for key in keys} for parent in (SECOND, FIRST)}
    for parent in (FIRST, SECOND):
        own = found[parent]
        while waiting := [
            key
            for key in keys
            if len(own[key]) < samples and not (settled and settled(found[SECOND][key], found[FIRST][key]))
        ]:
            step = max(_STEP[parent], parallel // len(waiting)) if settled else samples
            wanted = [f"{key}/{i}" for key in waiting for i in range(len(own[key]), min(samples, len(own[key]) + step))]
            for name, row in zip(wanted, draw[parent](wanted), strict=True):
                own[name.rpartition("/")[0]].append(row)
    return found
