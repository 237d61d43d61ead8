"""Intervals by bootstrap over questions.

Samples of one question are no independent evidence: 64 answers to each of 30 questions are 30 questions.
So questions are drawn with replacement, each with all its samples, and two models that answered the
same questions are compared draw by draw, which takes the spread between questions out of the
difference (Koehn 2004, "Statistical significance tests for machine translation evaluation"). Where
several questions are wordings of one problem, the problem is drawn: pass `clusters`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rpam_lite.errors import RpamError

Floats = NDArray[np.float64]
# Values [questions, ...] and how often each draw holds each question [draws, questions], to one figure a draw.
Statistic = Callable[[Floats, Floats], Floats]
DRAWS = 2000


@dataclass(frozen=True)
class Interval:
    """A figure with its 95 % percentile bootstrap interval, and the seed of the draws.

    All three are NaN where the figure is not defined, as a mean over no question.
    """

    value: float
    low: float
    high: float
    seed: int = 0


def mean(values: Floats, counts: Floats) -> Floats:
    """Mean over the samples of each question, then over questions."""
    by_question = values.reshape(len(values), -1).mean(1)
    return _divided(counts @ by_question, counts.sum(1))


def ratio(values: Floats, counts: Floats) -> Floats:
    """Ratio of two sums: values [questions, 2], numerator and denominator."""
    sums = counts @ values
    return _divided(sums[:, 0], sums[:, 1])


def ratio_of_ratios(values: Floats, counts: Floats) -> Floats:
    """Ratio of two `ratio`s: values [questions, 4], the two columns of each."""
    return _divided(ratio(values[:, :2], counts), ratio(values[:, 2:], counts))


def resampled(statistic: Callable[[Floats], float]) -> Statistic:
    """A statistic of the questions drawn, for what is no function of sums, as a rank correlation.

    Args:
        statistic: Of values [questions drawn, ...], a question drawn twice being there twice.
    """

    def of_draws(values: Floats, counts: Floats) -> Floats:
        rows = np.arange(len(values))
        return np.array([statistic(values[np.repeat(rows, c)]) for c in counts.astype(np.int64)], dtype=np.float64)

    return of_draws


def interval(
    values: Floats,
    statistic: Statistic = mean,
    clusters: Sequence[str] | None = None,
    seed: int = 0,
    draws: int = DRAWS,
) -> Interval:
    """A statistic with its bootstrap interval.

    Args:
        values: [questions, ...]; what belongs to one question stays together.
        statistic: `mean`, `ratio`, `ratio_of_ratios`, or any function through `resampled`.
        clusters: Name of the problem behind each question, where one problem has several.
        seed: Of the draws.
        draws: How many; draws in which the statistic is not defined are left out.

    Raises:
        RpamError: No questions, or as many cluster names as questions are not given.
    """
    counts = resampling_counts(len(values), clusters, seed, draws)
    return _percentiles(statistic(values, counts), seed)


def paired_difference(
    a: Floats,
    b: Floats,
    statistic: Statistic = mean,
    clusters: Sequence[str] | None = None,
    seed: int = 0,
    draws: int = DRAWS,
) -> Interval:
    """Statistic of `a` minus that of `b`, the same questions drawn for both.

    Args:
        a: [questions, ...] of one model.
        b: [questions, ...] of the other, the same questions in the same order; it may have other samples.
        statistic: As in `interval`.
        clusters: As in `interval`.
        seed: Of the draws.
        draws: How many.

    Raises:
        RpamError: As `interval`, or the two have different numbers of questions.
    """
    if len(a) != len(b):
        raise RpamError(f"a paired difference needs the same questions on both sides; it got {len(a)} and {len(b)}.")
    counts = resampling_counts(len(a), clusters, seed, draws)
    return _percentiles(statistic(a, counts) - statistic(b, counts), seed)


def resampling_counts(
    questions: int, clusters: Sequence[str] | None = None, seed: int = 0, draws: int = DRAWS
) -> Floats:
    """How often each draw holds each question: [1 + draws, questions], the first row the sample itself.

    Args:
        questions: How many there are.
        clusters: As in `interval`.
        seed: Of the draws.
        draws: How many.

    Raises:
        RpamError: No questions, or as many cluster names as questions are not given.
    """
    if questions == 0:
        raise RpamError("statistics need at least one question; the records hold none.")
    if clusters is not None and len(clusters) != questions:
        raise RpamError(f"`clusters` names {len(clusters)} problems for {questions} questions; give one for each.")
    unit = np.arange(questions) if clusters is None else np.unique(clusters, return_inverse=True)[1]
    units = int(unit.max()) + 1
    drawn = np.random.default_rng(seed).multinomial(units, np.full(units, 1 / units), size=draws)
    return np.vstack([np.ones((1, units)), drawn])[:, unit]


def _percentiles(figures: Floats, seed: int) -> Interval:
    """The interval of figures of which the first is the sample's own."""
    defined = figures[1:][np.isfinite(figures[1:])]
    if not np.isfinite(figures[0]) or not len(defined):
        return Interval(float("nan"), float("nan"), float("nan"), seed)
    low, high = np.percentile(defined, [2.5, 97.5])
    return Interval(float(figures[0]), float(low), float(high), seed)


def _divided(numerator: Floats, denominator: Floats) -> Floats:
    return np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=denominator != 0)
