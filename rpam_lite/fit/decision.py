"""The decision row: when the merge thinks, as one row of its output head, apart from how it answers.

Whether an answer is long is decided by its first token: the token that opens Long's answers, or another one.
Its logit is the product of the final hidden state h of the prompt with that token's row of the head, so that
a vector r added to the row moves the choice alone:

    z(q) = gap(q) + r . h(q),        thinks if z(q) > 0

gap is the logit of the opening token less the largest other one. r minimises the weighted logistic loss

    sum_q |u_q| log(1 + exp(-sign(u_q) z(q))) / sum_q |u_q|  +  ridge / 2 * E[(r . h')^2]

where u_q is the regret of answering in short at a price of a token (`rpam_lite.patterns.price`), and the h' are states
within answers: there the row must stay quiet (1e-2 of their mean square is added in every direction). One
direction, along which every decision state has nearly the same product, has a penalty of its own, 1e-3: it is the
bias. A budget of tokens sets the price, and what is still missing, the bias; points of accuracy that may be lost set
the budget.

Self-Route (arXiv 2505.20664) chooses by a probe of hidden states too, outside of the model and by labels alone.

All arithmetic is in float64 and in the span of the decision states, of which there are some hundreds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.linalg
import scipy.optimize
import scipy.special

Vector = npt.NDArray[np.float64]
Regrets = Callable[[float], Vector]  # of a price

RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
_SEARCHED = 0.1  # the ridge at which a budget's price is looked for
_FOLDS, _FOLD_SEED = 8, 0
_BIAS_RIDGE = 1e-3
_HALVINGS = 20
_BUDGET_STEP = 0.01  # of Long's tokens, to which the budget of an accuracy is found


@dataclass(frozen=True)
class DecisionStates:
    """What the merge knows where its answers begin.

    Attributes:
        decisions: Final hidden states of the last prompt tokens, float64 [questions, hidden].
        gaps: Logit of the opening token less the largest other one, float64 [questions].
        elsewhere: Final hidden states at positions within answers, float64 [positions, hidden].
        elsewhere_gaps: The gap there, float64 [positions].
    """

    decisions: Vector
    gaps: Vector
    elsewhere: Vector
    elsewhere_gaps: Vector


@dataclass(frozen=True)
class Features:
    """The decision states in coordinates in which the penalty is a plain sum of squares.

    Attributes:
        values: float64 [questions, features].
        constant: The product of every state with `bias`, nearly 1, float64 [questions].
        gaps: As of the states, float64 [questions].
        back: Turns coefficients [features] into a row [hidden], float64 [hidden, features].
        bias: The unpenalised row, float64 [hidden].
    """

    values: Vector
    constant: Vector
    gaps: Vector
    back: Vector
    bias: Vector

    def some(self, chosen: npt.NDArray[np.bool_]) -> Features:
        """Those of some questions."""
        return Features(self.values[chosen], self.constant[chosen], self.gaps[chosen], self.back, self.bias)


@dataclass(frozen=True)
class ByParent:
    """A figure of both parents' answers to every question, as their mean tokens, float64 [questions] each."""

    long: Vector
    short: Vector

    def mean(self, thinks: npt.NDArray[np.bool_]) -> float:
        """Of an answer, where these questions are answered in long."""
        return float(np.where(thinks, self.long, self.short).mean())


@dataclass(frozen=True)
class DecisionFit:
    """A fitted row, and what it promises.

    Attributes:
        row: What the opening token's row of the head gains, float64 [hidden].
        price: Points of accuracy a 1000 tokens that the regrets were taken at.
        ridge: Of `RIDGES`, the one whose rows did best on questions that they were not fitted on.
        thinks: Whether each question is answered in long by a row that was not fitted on it, bool [questions].
    """

    row: Vector
    price: float
    ridge: float
    thinks: npt.NDArray[np.bool_]


def features_of(states: DecisionStates) -> Features:
    """Whiten the decision states by what the states within answers are like."""
    root = whitening(states.elsewhere)
    white = scipy.linalg.solve_triangular(root, states.decisions.T, lower=True).T
    left, sizes, right = np.linalg.svd(white, full_matrices=False)
    values = left * sizes
    back = scipy.linalg.solve_triangular(root.T, right.T, lower=False)
    flat = sizes / (sizes**2 + 1e-6 * sizes[0] ** 2) * left.sum(0)
    return Features(values, values @ flat, states.gaps, back, back @ flat)


def whitening(elsewhere: Vector) -> Vector:
    """Cholesky factor [hidden, hidden] of the states' mean square, a hundredth of it added in every direction."""
    hidden = elsewhere.shape[1]
    moment = elsewhere.T @ elsewhere / len(elsewhere)
    moment[np.diag_indices(hidden)] += 1e-2 * np.trace(moment) / hidden
    return np.asarray(np.linalg.cholesky(moment), dtype=np.float64)


def fit_logistic(features: Features, regrets: Vector, ridge: float) -> Vector:
    """Coefficients of the features and, last, of the bias, float64 [features + 1]; 0 where no regret speaks."""
    design = np.column_stack([features.values, features.constant])
    start = np.zeros(design.shape[1])
    if not regrets.any():
        return start
    weights, signs = np.abs(regrets) / np.abs(regrets).sum(), np.sign(regrets)
    penalty = np.full(design.shape[1], ridge)
    penalty[-1] = _BIAS_RIDGE

    def loss(x: Vector) -> tuple[float, Vector]:
        margins = signs * (features.gaps + design @ x)
        slopes = -weights * signs * scipy.special.expit(-margins)
        value = weights @ np.logaddexp(0, -margins) + penalty @ x**2 / 2
        return float(value), design.T @ slopes + penalty * x

    found = scipy.optimize.minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 1000})
    return np.asarray(found.x, dtype=np.float64)


def scores(features: Features, coefficients: Vector) -> Vector:
    """z of every question, float64 [questions]; above 0 it is answered in long."""
    return np.asarray(features.gaps + features.values @ coefficients[:-1] + features.constant * coefficients[-1])


def unseen_scores(features: Features, regrets: Vector, ridge: float) -> Vector:
    """z of every question by a row that was fitted on the other seven eighths, float64 [questions]."""
    found = features.gaps.copy()
    fold = np.random.default_rng(_FOLD_SEED).permutation(len(found)) % _FOLDS
    for own in range(_FOLDS):
        out = fold == own
        if out.any():
            found[out] = scores(features.some(out), fit_logistic(features.some(~out), regrets[~out], ridge))
    return found


def fit_price(features: Features, regrets: Vector, price: float) -> DecisionFit:
    """The row that loses least at a price.

    The bias is moved to where questions left out lose least: the logistic loss, for all its weights, is no utility.

    Args:
        features: Of the merge's decision states.
        regrets: By how many points Long is worth more than Short at this price, float64 [questions].
        price: Points of accuracy that 1000 tokens must be worth.
    """
    ridge, unseen = _best_ridge(features, regrets)
    return _moved(features, regrets, ridge, unseen, best_threshold(unseen, regrets), price)


def fit_budget(features: Features, regrets: Regrets, tokens: ByParent, budget: float) -> DecisionFit:
    """The row that keeps the mean answer within a budget and loses least by it.

    What is left of a budget is not spent where thinking loses accuracy.

    Args:
        features: Of the merge's decision states.
        regrets: Of a price gives by how many points Long is worth more than Short, float64 [questions].
        tokens: Of the parents' answers.
        budget: Mean tokens of an answer at most, more than Short's.
    """

    def tokens_at(price: float) -> float:
        return tokens.mean(scores(features, fit_logistic(features, regrets(price), _SEARCHED)) > 0)

    price = _price_within(tokens_at, budget)
    ridge, unseen = _best_ridge(features, regrets(price))
    shift, better = threshold(unseen, tokens, budget), best_threshold(unseen, regrets(0.0))
    # Fewer long answers are more tokens where Short writes more.
    if better > shift and tokens.mean(unseen > better * features.constant) <= budget * (1 + 1e-9):
        shift = better
    return _moved(features, regrets(price), ridge, unseen, shift, price)


def fit_accuracy(features: Features, regrets: Regrets, tokens: ByParent, right: ByParent, least: float) -> DecisionFit:
    """The row of the least budget that keeps an accuracy on questions left out, found by bisection.

    Args:
        features: Of the merge's decision states.
        regrets: As of `fit_budget`.
        tokens: Of the parents' answers.
        right: Share of the parents' answers that are right.
        least: Mean accuracy at least, not above Long's: all of Long's tokens keep that.
    """
    low, high = tokens.short.mean(), tokens.long.mean()
    found = fit_budget(features, regrets, tokens, high)
    while high - low > _BUDGET_STEP * tokens.long.mean():
        middle = (low + high) / 2
        tried = fit_budget(features, regrets, tokens, middle)
        if right.mean(tried.thinks) >= least:
            found, high = tried, middle
        else:
            low = middle
    return found


def _best_ridge(features: Features, regrets: Vector) -> tuple[float, Vector]:
    """The ridge with the least loss on questions left out, and their z by it."""
    unseen = {ridge: unseen_scores(features, regrets, ridge) for ridge in RIDGES}

    def lost(ridge: float) -> float:
        return float(np.abs(regrets) @ np.logaddexp(0, -np.sign(regrets) * unseen[ridge]))

    best = min(RIDGES, key=lost)
    return best, unseen[best]


def _moved(
    features: Features, regrets: Vector, ridge: float, unseen: Vector, shift: float, price: float
) -> DecisionFit:
    """The row fitted on all questions, thinking above `shift` instead of 0."""
    found, z = fit_logistic(features, regrets, ridge), unseen - shift * features.constant
    found[-1] -= shift
    row = features.back @ found[:-1] + features.bias * found[-1]
    return DecisionFit(row, price, ridge, z > 0)


def threshold(z: Vector, tokens: ByParent, budget: float) -> float:
    """The least threshold above which thinking stays within the budget; equal scores can't be parted."""
    order = np.argsort(-z, kind="stable")
    extra = np.concatenate([[0.0], np.cumsum((tokens.long - tokens.short)[order]) / len(z)])
    within = tokens.short.mean() + extra <= budget * (1 + 1e-9)  # rounding breaks no budget
    return _between(z, max((count for count in _counts(z) if within[count]), default=0))


def best_threshold(z: Vector, regrets: Vector) -> float:
    """The threshold above which the regrets sum to most; of several the one nearest to 0."""
    gained = np.concatenate([[0.0], np.cumsum(regrets[np.argsort(-z, kind="stable")])])
    counts = _counts(z)
    most = max(gained[count] for count in counts)
    return min((_between(z, count) for count in counts if gained[count] >= most - 1e-9), key=abs)


def _counts(z: Vector) -> list[int]:
    """How many of the largest scores a threshold can part from the others."""
    ends = _ends(z)
    return [count for count in range(len(z) + 1) if ends[count] > ends[count + 1]]


def _between(z: Vector, count: int) -> float:
    """A threshold between the `count` largest scores and the others: 0 if it does, else halfway or one unit away."""
    high, low = _ends(z)[count : count + 2]
    if low < 0 < high:
        return 0.0
    if np.isinf(high):
        return float(low + 1)
    return float(high - 1) if np.isinf(low) else float((high + low) / 2)


def _ends(z: Vector) -> Vector:
    return np.concatenate([[np.inf], np.sort(z)[::-1], [-np.inf]])


def _price_within(tokens_at: Callable[[float], float], budget: float) -> float:
    """A price at which the answers stay within the budget, next to one at which they do not."""
    if tokens_at(0.0) <= budget:
        return 0.0
    low, high = 0.0, 1.0
    while tokens_at(high) > budget and high < 1e6:
        low, high = high, 2 * high
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if tokens_at(middle) > budget else (low, middle)
    return high
