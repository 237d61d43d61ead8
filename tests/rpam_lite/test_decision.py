"""The decision row: its fit, its budget, and the accuracy that it keeps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.optimize

from rpam_lite.fit.decision import (
    ByParent,
    DecisionStates,
    Vector,
    best_threshold,
    features_of,
    fit_accuracy,
    fit_budget,
    fit_logistic,
    fit_price,
    scores,
    threshold,
)

QUESTIONS, HIDDEN = 120, 12


def made_up(seed: int = 0) -> tuple[DecisionStates, Vector, ByParent]:
    """States whose third dimension is the question's worth; gains in points, and both parents' tokens."""
    random = np.random.default_rng(seed)
    decisions = random.normal(size=(QUESTIONS, HIDDEN))
    decisions[:, 0] += 5  # what all decision states have in common
    elsewhere = random.normal(size=(400, HIDDEN))
    gains = 50 + 40 * decisions[:, 2]
    states = DecisionStates(decisions, random.normal(size=QUESTIONS) - 1, elsewhere, random.normal(size=400) - 12)
    return states, gains, ByParent(np.full(QUESTIONS, 100.0), np.full(QUESTIONS, 5.0))


def at(price: float, gains: Vector, tokens: ByParent) -> Vector:
    return np.asarray(gains - price * (tokens.long - tokens.short) / 1000)


def decided(states: DecisionStates, row: Vector) -> Any:
    return states.gaps + states.decisions @ row > 0


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_a_budget_is_kept_on_other_questions_and_spent_where_it_gains_most(share: float) -> None:
    states, gains, tokens = made_up()
    budget = share * 100
    found = fit_budget(features_of(states), lambda price: at(price, gains, tokens), tokens, budget)
    promised = np.where(found.thinks, tokens.long, tokens.short).mean()
    assert promised <= budget + 2  # the bias moves not quite every question alike
    others, worth, _ = made_up(seed=1)
    thinks = decided(others, found.row)
    assert np.where(thinks, 100, 5).mean() == pytest.approx(budget, abs=8)
    assert worth[thinks].mean() > worth[~thinks].mean() + 40
    assert found.thinks.mean() == pytest.approx(thinks.mean(), abs=0.1)


def test_a_budget_is_not_spent_where_thinking_loses() -> None:
    states, gains, tokens = made_up()
    found = fit_budget(features_of(states), lambda price: at(price, gains - 50, tokens), tokens, 100.0)
    thinks = decided(states, found.row)
    assert 0.4 < thinks.mean() < 0.6
    assert (thinks == (gains > 50)).mean() > 0.9


@pytest.mark.parametrize("lost", [0.0, 0.05, 0.3])
def test_an_accuracy_is_kept_in_as_few_tokens_as_that_takes(lost: float) -> None:
    """Long is right on all, Short where thinking gains nothing."""
    states, gains, tokens = made_up()
    gains = np.where(gains > 50, 100.0, 0.0)
    right = ByParent(np.ones(QUESTIONS), 1 - gains / 100)
    found = fit_accuracy(features_of(states), lambda price: at(price, gains, tokens), tokens, right, 1 - lost - 1e-9)
    assert right.mean(found.thinks) >= 1 - lost - 1e-9
    fewer = tokens.mean(found.thinks) - 2
    less = fit_budget(features_of(states), lambda price: at(price, gains, tokens), tokens, fewer)
    assert right.mean(less.thinks) < 1 - lost
    needed = 5 + 95 * (gains.mean() / 100 - lost)  # of one that knows every answer
    assert needed <= tokens.mean(found.thinks)
    others, worth, _ = made_up(seed=1)
    thinks = decided(others, found.row)
    assert np.mean(thinks | (worth <= 50)) == pytest.approx(1 - lost, abs=0.06)


def test_an_accuracy_is_kept_where_short_writes_more() -> None:
    """Of some questions, and of all: Long is right everywhere."""
    states, gains, tokens = made_up()
    right = ByParent(np.ones(QUESTIONS), np.where(gains > 50, 0.0, 1.0))
    worth = 100 * (right.long - right.short)
    for lengths in (
        ByParent(np.full(QUESTIONS, 100.0), np.where(gains > 50, 20.0, 130.0)),
        ByParent(tokens.long, tokens.long + 20),
    ):
        found = fit_accuracy(
            features_of(states), lambda price, n=lengths: at(price, worth, n), lengths, right, 0.95 - 1e-9
        )
        assert right.mean(found.thinks) >= 0.95 - 1e-9


def test_a_budget_is_kept_where_short_writes_more() -> None:
    """Thinking loses accuracy there, but saves what the budget has not."""
    states, gains, _ = made_up()
    lengths = ByParent(np.full(QUESTIONS, 100.0), np.where(gains > 50, 20.0, 300.0))
    found = fit_budget(features_of(states), lambda price: at(price, gains - 50, lengths), lengths, 110.0)
    assert lengths.mean(found.thinks) <= 110 * (1 + 1e-9)


def test_a_price_decides_by_the_sign_of_the_regret() -> None:
    states, gains, tokens = made_up()
    thinks = {}
    for price in (0.0, 500.0, 5000.0):
        worth = at(price, gains, tokens)
        found = fit_price(features_of(states), worth, price)
        assert found.price == price
        thinks[price] = decided(states, found.row)
        assert (thinks[price] == (worth > 0)).mean() > 0.9
    assert thinks[0.0].sum() > thinks[500.0].sum() > thinks[5000.0].sum() == 0


def test_where_no_regret_speaks_the_merge_decides_as_before() -> None:
    states, gains, _ = made_up()
    found = fit_price(features_of(states), 0 * gains, 0.0)
    assert not found.row.any()
    assert (found.thinks == (states.gaps > 0)).all()


def test_the_fit_is_the_minimum_of_the_loss_it_states() -> None:
    """Against another minimiser, on the loss as the module's head writes it, in the row itself."""
    states, gains, tokens = made_up()
    worth, ridge = at(300, gains, tokens), 0.1
    features = features_of(states)
    found = fit_logistic(features, worth, ridge)
    moment = states.elsewhere.T @ states.elsewhere / len(states.elsewhere)
    moment += 1e-2 * np.trace(moment) / HIDDEN * np.eye(HIDDEN)

    def loss(x: Vector) -> float:
        row, bias = x[:-1], x[-1]
        z = states.gaps + states.decisions @ (row + bias * features.bias)
        fit = (np.abs(worth) * np.log1p(np.exp(-np.sign(worth) * z))).sum() / np.abs(worth).sum()
        return float(fit + ridge / 2 * row @ moment @ row + 1e-3 / 2 * bias**2)

    best = scipy.optimize.minimize(loss, np.zeros(HIDDEN + 1), method="BFGS", options={"gtol": 1e-7}).x
    ours = np.append(features.back @ found[:-1], found[-1])
    assert loss(ours) == pytest.approx(loss(best), rel=1e-6)
    assert ours == pytest.approx(best, abs=2e-3)
    z = scores(features, found)
    assert z == pytest.approx(states.gaps + states.decisions @ (ours[:-1] + ours[-1] * features.bias))


def test_the_row_stays_quiet_where_answers_go_on() -> None:
    """Two dimensions tell the same; the row uses the one that says nothing within answers."""
    states, gains, _ = made_up()
    decisions, elsewhere = states.decisions.copy(), states.elsewhere.copy()
    decisions[:, 5] = decisions[:, 2]
    elsewhere[:, 2] *= 30
    elsewhere[:, 5] *= 0.1
    changed = replace(states, decisions=decisions, elsewhere=elsewhere)
    found = fit_price(features_of(changed), gains, 0.0)
    assert abs(found.row[5]) > 20 * abs(found.row[2])


def test_the_bias_moves_every_decision_alike() -> None:
    states = made_up()[0]
    decisions = states.decisions.copy()
    decisions[:, 0] = 5 + 0.01 * decisions[:, 1]
    features = features_of(replace(states, decisions=decisions))
    assert features.constant == pytest.approx(1, abs=0.02)
    assert features.bias == pytest.approx([0.2] + [0] * (HIDDEN - 1), abs=0.01)


def test_a_threshold_between_the_last_question_within_the_budget_and_the_next() -> None:
    z, tokens = np.array([3.0, -1.0, 2.0, 0.0]), ByParent(np.full(4, 9.0), np.ones(4))
    assert threshold(z, tokens, 5.0) == 1.0  # two of four think: 5 tokens
    assert threshold(z, tokens, 4.9) == 2.5
    assert threshold(z, tokens, 9.0) == -2.0
    assert threshold(z, tokens, 0.5) == 4.0
    assert threshold(np.array([1.0, 1.0, -1.0, -2.0]), tokens, 4.0) == 2.0  # equal scores can't be parted
    assert threshold(z + 5, tokens, 9.0) == 0.0  # all think already


def test_a_price_moves_the_threshold_to_where_least_is_lost() -> None:
    z = np.array([3.0, 2.0, 1.0, -1.0])
    assert best_threshold(z, np.array([5.0, 1, -2, -2])) == 1.5
    assert best_threshold(z, np.array([5.0, -1, -2, 9])) == -2.0  # all think
    assert best_threshold(z, np.array([-5.0, -1, -2, 0])) == 4.0  # none do
    assert best_threshold(z, np.array([5.0, 1, 0, 0])) == 0.0  # three are as good: the one nearest to 0
    assert best_threshold(z + 5, np.ones(4)) == best_threshold(z - 5, -np.ones(4)) == 0.0  # decided already
    assert best_threshold(np.array([1.0, 1, 0]), np.array([5.0, -6, -1])) == 2.0  # equal scores can't be parted
