"""The decision row: when the merge thinks, as one row of its output head, apart from how it answers.

Whether an answer is long is decided by its first token: the token that opens Long's answers, or another one.
Its logit is the product of the final hidden state h of the prompt with that token's row of the head, so that
a vector r added to the row moves the choice alone:

    z(q) = gap(q) + r . h(q),        thinks if z(q) > 0

gap is the logit of the opening token less the largest other one. r minimises the weighted logistic loss

    sum_q |u_q| log(1 + exp(-sign(u_q) z(q))) / sum_q |u_q|  +  ridge / 2 * E[(r . h')^2]

where u_q is the regret of answering in short at a price of a token (`rpam_lite.patterns.price`), and the h' are states
within answers: there the row must stay quiet. One direction, along which every decision state has the same
product, is not penalised but for 1e-3: it is the bias. A budget of tokens sets the price, and what is still
missing, the bias.

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
_FOLDS = 8
_BIAS_RIDGE = 1e-3
_HALVINGS = 20


@dataclass(frozen=True)
class DecisionStates:
    """What the merge knows where its answers begin.

    Attributes:
        decisions: Final hidden states of the last prompt tokens, float64 [questions, hidden].
        gaps: Logit of the opening token less the largest other one, float64 [questions].
        elsewhere: Final hidden states at positions within answers, float64 [positions, hidden].
    """

    decisions: Vector
    gaps: Vector
    elsewhere: Vector


@dataclass(frozen=True)
class DecisionFit:
    """A fitted row, and what it promises.

    Attributes:
        row: What the opening token's row of the head gains, float64 [hidden].
        price: Points of accuracy a 1000 tokens that the regrets were taken at.
        ridge: Of `RIDGES`, the one whose rows did best on questions that they were not fitted on.
        thinks: Share of such questions that are answered in long.
        tokens: Mean tokens of them, each parent's answers being as long as before.
    """

    row: Vector
    price: float
    ridge: float
    thinks: float
    tokens: float


@dataclass(frozen=True)
class Features:
    """The decision states in coordinates in which the penalty is a plain sum of squares.

    Attributes:
        values: float64 [questions, features].
        constant: The product of every state with `bias`, nearly 1, float64 [questions].
        back: Turns coefficients [features] into a row [hidden], float64 [hidden, features].
        bias: The unpenalised row, float64 [hidden].
    """

    values: Vector
    constant: Vector
    back: Vector
    bias: Vector


def features_of(states: DecisionStates) -> Features:
    """Whiten the decision states by what the states within answers are like."""
    hidden = states.decisions.shape[1]
    moment = states.elsewhere.T @ states.elsewhere / len(states.elsewhere)
    moment[np.diag_indices(hidden)] += 1e-2 * np.trace(moment) / hidden
    root = np.linalg.cholesky(moment)
    white = scipy.linalg.solve_triangular(root, states.decisions.T, lower=True).T
    left, sizes, right = np.linalg.svd(white, full_matrices=False)
    values = left * sizes
    back = scipy.linalg.solve_triangular(root.T, right.T, lower=False)
    flat = sizes / (sizes**2 + 1e-6 * sizes[0] ** 2) * left.sum(0)
    return Features(values, values @ flat, back, back @ flat)


def fit_logistic(features: Features, gaps: Vector, regrets: Vector, ridge: float) -> Vector:
    """Coefficients of the features and, last, of the bias, float64 [features + 1]."""
    weights, signs = np.abs(regrets) / np.abs(regrets).sum(), np.sign(regrets)
    design = np.column_stack([features.values, features.constant])
    penalty = np.full(design.shape[1], ridge)
    penalty[-1] = _BIAS_RIDGE

    def loss(x: Vector) -> tuple[float, Vector]:
        margins = signs * (gaps + design @ x)
        slopes = -weights * signs * _sigmoid(-margins)
        value = weights @ np.logaddexp(0, -margins) + penalty @ x**2 / 2
        return float(value), design.T @ slopes + penalty * x

    start = np.zeros(design.shape[1])
    found = scipy.optimize.minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 1000})
    return np.asarray(found.x, dtype=np.float64)


def scores(features: Features, gaps: Vector, coefficients: Vector) -> Vector:
    """z of every question, float64 [questions]; above 0 it is answered in long."""
    return np.asarray(gaps + features.values @ coefficients[:-1] + features.constant * coefficients[-1])


def unseen_scores(features: Features, gaps: Vector, regrets: Vector, ridge: float) -> Vector:
    """z of every question by a row that was fitted on the other seven eighths, float64 [questions]."""
    found = np.zeros(len(gaps))
    fold = np.arange(len(gaps)) % _FOLDS
    for own in range(_FOLDS):
        out, kept = fold == own, fold != own
        if out.any() and np.abs(regrets[kept]).sum() > 0:
            found[out] = scores(_some(features, out), gaps[out], _fit_some(features, gaps, regrets, ridge, kept))
    return found


def fit_budget(
    states: DecisionStates, regrets: Regrets, long_tokens: Vector, short_tokens: Vector, budget: float
) -> DecisionFit:
    """The row that keeps the mean answer within a budget and loses least by it.

    Args:
        states: Of the merge on the calibration questions.
        regrets: Of a price gives by how many points Long is worth more than Short on each, float64 [questions].
        long_tokens: Mean tokens of Long's answers, float64 [questions].
        short_tokens: Those of Short's.
        budget: Mean tokens of an answer at most; below Short's own, it is never met.
    """
    features, gaps = features_of(states), states.gaps

    def tokens_at(price: float) -> float:
        z = scores(features, gaps, fit_logistic(features, gaps, regrets(price), _SEARCHED))
        return float(np.where(z > 0, long_tokens, short_tokens).mean())

    price = _price_within(tokens_at, budget)
    return _fit(features, gaps, regrets(price), price, long_tokens, short_tokens, budget)


def fit_price(
    states: DecisionStates, regrets: Vector, price: float, long_tokens: Vector, short_tokens: Vector
) -> DecisionFit:
    """The row that loses least at a price; arguments as of `fit_budget`, `regrets` those at this price."""
    return _fit(features_of(states), states.gaps, regrets, price, long_tokens, short_tokens, None)


def _fit(
    features: Features,
    gaps: Vector,
    regrets: Vector,
    price: float,
    long_tokens: Vector,
    short_tokens: Vector,
    budget: float | None,
) -> DecisionFit:
    """A row with the ridge that does best on questions left out, its bias moved to where those keep the budget.

    Without a budget, to where those lose least: the logistic loss, for all its weights, is no utility.
    """
    unseen = {ridge: unseen_scores(features, gaps, regrets, ridge) for ridge in RIDGES}
    ridge = min(RIDGES, key=lambda r: float(np.abs(regrets) @ np.logaddexp(0, -np.sign(regrets) * unseen[r])))
    shift = (
        best_threshold(unseen[ridge], regrets)
        if budget is None
        else threshold(unseen[ridge], long_tokens, short_tokens, budget)
    )
    found, z = fit_logistic(features, gaps, regrets, ridge), unseen[ridge] - shift
    found[-1] -= shift
    row = features.back @ found[:-1] + features.bias * found[-1]
    tokens = np.where(z > 0, long_tokens, short_tokens).mean()
    return DecisionFit(row, price, ridge, float((z > 0).mean()), float(tokens))


def threshold(z: Vector, long_tokens: Vector, short_tokens: Vector, budget: float) -> float:
    """The least threshold above which thinking stays within the budget, halfway to the next question below it."""
    order = np.argsort(-z, kind="stable")
    extra = np.cumsum((long_tokens - short_tokens)[order]) / len(z)
    within = short_tokens.mean() + extra <= budget
    return _below(z, int(np.argmin(within)) if not within.all() else len(z))  # the first that breaks the budget


def best_threshold(z: Vector, regrets: Vector) -> float:
    """The threshold above which the regrets sum to most; of several the one nearest to 0."""
    gained = np.concatenate([[0.0], np.cumsum(regrets[np.argsort(-z, kind="stable")])])
    best = np.flatnonzero(gained >= gained.max() - 1e-9)
    return min((_below(z, int(count)) for count in best), key=abs)


def _below(z: Vector, count: int) -> float:
    """Halfway between the `count` largest scores and the next one; outside of all, one unit away."""
    ends = np.concatenate([[z.max() + 2], np.sort(z)[::-1], [z.min() - 2]])
    return float((ends[count] + ends[count + 1]) / 2)


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


def _fit_some(features: Features, gaps: Vector, regrets: Vector, ridge: float, kept: npt.NDArray[np.bool_]) -> Vector:
    return fit_logistic(_some(features, kept), gaps[kept], regrets[kept], ridge)


def _some(features: Features, kept: npt.NDArray[np.bool_]) -> Features:
    return Features(features.values[kept], features.constant[kept], features.back, features.bias)


def _sigmoid(x: Vector) -> Vector:
    return np.asarray(scipy.special.expit(x), dtype=np.float64)
