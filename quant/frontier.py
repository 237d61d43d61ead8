"""Where a model stands against the scalar interpolation curve, at equal tokens.

A merge that lies between its parents proves nothing: so does plain interpolation with one tuned
number. The honest question is how much accuracy it has over that curve at the tokens it spends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from quant.measures import by_question, require_same_questions
from quant.records import Record
from quant.statistics import Floats, Interval, mean, ratio, resampling_counts


@dataclass(frozen=True)
class Gain:
    """Accuracy above the curve at equal tokens, with a 95 % paired bootstrap interval over questions."""

    tokens: float
    accuracy: float
    curve_accuracy: float
    gain: float
    low: float
    high: float


def gain_over_curve(model: Sequence[Record], curve: Sequence[Sequence[Record]], seed: int = 0) -> Gain:
    """Compare a model with the curve through `curve`, all on the same questions in the same order.

    Each may have several samples a question, and not as many as the others; they stay together in the bootstrap.

    Args:
        model: Records of the model.
        curve: Records of the interpolations, in order of lambda, both parents as its ends.
        seed: Of the bootstrap.

    Raises:
        RpamError: The questions are not the same.
    """
    answers = [by_question(records) for records in (model, *curve)]
    require_same_questions(*answers)
    accuracy = np.array([a.correct.mean(1) for a in answers])
    tokens = np.array([a.tokens.mean(1) for a in answers])
    questions = len(answers[0].questions)
    # Row 0 is the sample itself, every other row one resampling; columns are the models.
    weights = resampling_counts(questions, seed=seed) / questions
    mean_accuracy, mean_tokens = weights @ accuracy.T, weights @ tokens.T
    at_curve = np.array([curve_at(t[1:], a[1:], t[0]) for t, a in zip(mean_tokens, mean_accuracy, strict=True)])
    gains = mean_accuracy[:, 0] - at_curve
    low, high = np.percentile(gains[1:], [2.5, 97.5])
    return Gain(
        tokens=float(mean_tokens[0, 0]),
        accuracy=float(mean_accuracy[0, 0]),
        curve_accuracy=float(at_curve[0]),
        gain=float(gains[0]),
        low=float(low),
        high=float(high),
    )


def gain_over_coin(model: Sequence[Record], short: Sequence[Record], long: Sequence[Record], seed: int = 0) -> Gain:
    """Compare a model with tossing a coin, question by question, for which parent answers.

    With a coin of any bias, mean tokens and accuracy lie on the straight line between both parents. It looks at
    no question and needs no merge, only both parents at hand: what adapts to questions should stand above it.

    Args:
        model: Records of the model.
        short: Of the Short parent, on the same questions.
        long: Of the Long parent.
        seed: Of the bootstrap.

    Raises:
        RpamError: The questions are not the same.
    """
    return gain_over_curve(model, [short, long], seed)


def rate_over_curve(columns: Sequence[Floats], tokens: Sequence[Floats]) -> Interval:
    """A rate of a model minus the curve's lowest at the tokens of the model, by paired bootstrap.

    Args:
        columns: Numerator and denominator by question [questions, 2], as `adaptivity.overthink` gives them: of the
            model, then of the interpolations in order of lambda, both parents as their ends.
        tokens: Mean tokens by question [questions] of the same models.
    """
    counts = resampling_counts(len(tokens[0]))
    rates = np.stack([ratio(values, counts) for values in columns], axis=1)
    mean_tokens = np.stack([mean(values, counts) for values in tokens], axis=1)
    differences = np.array([r[0] + curve_at(t[1:], -r[1:], t[0]) for t, r in zip(mean_tokens, rates, strict=True)])
    low, high = np.nanpercentile(differences[1:], [2.5, 97.5])
    return Interval(float(differences[0]), float(low), float(high), 0)


def threshold_policies(short: Sequence[Record], long: Sequence[Record]) -> tuple[list[float], list[float]]:
    """Mean tokens and accuracy of the policies that think from one level of difficulty on, and below it never.

    What a merge could do that keeps both parents' answers and knows the level: an upper limit, not a model.

    Args:
        short: Records of the Short parent, in the order of the questions.
        long: Of the Long parent, on the same questions.

    Returns:
        By threshold, from one above the hardest level (Short) down to the easiest (Long).
    """
    answers = by_question(short), by_question(long)
    require_same_questions(*answers)
    accuracy, tokens = ([getattr(a, name).mean(1) for a in answers] for name in ("correct", "tokens"))
    levels = np.array(answers[0].levels)
    steps = [np.zeros(len(levels), bool), *(levels >= level for level in sorted(set(levels.tolist()), reverse=True))]
    return (
        [float(np.where(thinks, tokens[1], tokens[0]).mean()) for thinks in steps],
        [float(np.where(thinks, accuracy[1], accuracy[0]).mean()) for thinks in steps],
    )


@dataclass(frozen=True)
class Policies:
    """Policies in order of tokens; of what lies between two, a coin decides.

    Attributes:
        tokens: Mean tokens of an answer.
        accuracy: Share of right answers.
        overthinking: Share of the answers that Short has right which are given in long; nan where it has none.
    """

    tokens: list[float]
    accuracy: list[float]
    overthinking: list[float]


def level_policies(short: Sequence[Record], long: Sequence[Record]) -> Policies:
    """The best that can be done by the level alone: levels are thought about in the order of accuracy a token.

    Each parent's own answers, and levels chosen by these very answers: the upper limit of all that knows difficulty
    and nothing else of a question. At few tokens it leaves the hardest levels out, where chains are longest.

    Args:
        short: Records of the Short parent, in the order of the questions.
        long: Of the Long parent, on the same questions.

    Returns:
        From Short on, one level more each; levels on which Long is no better are never thought about.
    """
    answers = by_question(short), by_question(long)
    require_same_questions(*answers)
    accuracy, tokens = ([getattr(a, name).mean(1) for a in answers] for name in ("correct", "tokens"))
    levels = np.array(answers[0].levels)
    gained, dearer = accuracy[1] - accuracy[0], tokens[1] - tokens[0]

    def worth(level: int) -> float:
        extra = dearer[levels == level].sum()
        return float(gained[levels == level].sum() / extra) if extra > 0 else np.inf

    helped = [level for level in sorted(set(levels.tolist())) if gained[levels == level].sum() > 0]
    order = sorted(helped, key=worth, reverse=True)
    steps = [np.isin(levels, order[:count]) for count in range(len(order) + 1)]
    right = accuracy[0].sum()
    return Policies(
        [float(np.where(thinks, tokens[1], tokens[0]).mean()) for thinks in steps],
        [float(np.where(thinks, accuracy[1], accuracy[0]).mean()) for thinks in steps],
        [float(accuracy[0][thinks].sum() / right) if right else float("nan") for thinks in steps],
    )


@dataclass(frozen=True)
class Choice:
    """A member of a family of models, and whether it does what was wished."""

    index: int
    met: bool


def most_accurate_within(accuracy: Sequence[float], tokens: Sequence[float], limit: float) -> Choice:
    """The most accurate member of at most `limit` mean tokens; the one of fewest tokens if none has."""
    inside = [i for i, t in enumerate(tokens) if t <= limit]
    if not inside:
        return Choice(min(range(len(tokens)), key=lambda i: tokens[i]), False)
    return Choice(max(inside, key=lambda i: (accuracy[i], -tokens[i])), True)


def cheapest_above(accuracy: Sequence[float], tokens: Sequence[float], least: float) -> Choice:
    """The member of fewest mean tokens with at least this accuracy; the most accurate one if none has."""
    above = [i for i, a in enumerate(accuracy) if a >= least]
    if not above:
        return Choice(max(range(len(accuracy)), key=lambda i: (accuracy[i], -tokens[i])), False)
    return Choice(min(above, key=lambda i: (tokens[i], -accuracy[i])), True)


def curve_at(tokens: Floats, values: Floats, at: float) -> float:
    """Value of the curve through the points, in their order, at `at` mean tokens.

    Straight between neighbours. Where the curve passes `at` more than once, its highest passage
    counts; beyond its ends, the end nearest in tokens.
    """
    best = None
    for i in range(len(tokens) - 1):
        low, high = sorted((i, i + 1), key=lambda j: tokens[j])
        if tokens[low] <= at <= tokens[high]:
            width = tokens[high] - tokens[low]
            share = (at - tokens[low]) / width if width > 0 else 1.0
            value = values[low] + share * (values[high] - values[low])
            best = value if best is None else max(best, value)
    if best is None:
        best = values[int(np.argmin(np.abs(tokens - at)))]
    return float(best)
