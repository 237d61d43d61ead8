"""Firm decisions: choices far from a toss, and quiet within answers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.linalg
import scipy.optimize

from rpam_lite.fit.decision import DecisionStates, Vector, whitening
from rpam_lite.fit.firmness import LOUDEST, QUIET, _correction, firm_row

QUESTIONS, PLACES, HIDDEN = 100, 400, 24


def made_up(seed: int = 0) -> tuple[DecisionStates, Vector]:
    """Gaps that are a row's product nearly, and a row that leaves z within a tenth or so of 0."""
    random = np.random.default_rng(seed)
    decisions = random.normal(size=(QUESTIONS, HIDDEN))
    decisions[:, 0] += 5  # what all decision states have in common
    elsewhere = 0.4 * random.normal(size=(PLACES, HIDDEN))
    native = np.r_[0.4, 0.3 * random.normal(size=HIDDEN - 1)]
    gaps = decisions @ native + 0.001 * random.normal(size=QUESTIONS)
    worth = np.zeros(HIDDEN)
    worth[2] = 0.1
    states = DecisionStates(decisions, gaps, elsewhere, np.minimum(-9.0, random.normal(size=PLACES) * 2 - 14))
    return states, worth - native


def choices(states: DecisionStates, row: Vector) -> Vector:
    return np.asarray(states.gaps + states.decisions @ row)


def within(states: DecisionStates, row: Vector) -> Vector:
    return np.asarray(states.elsewhere_gaps + states.elsewhere @ row)


def test_choices_become_firm_and_stay_what_they_were() -> None:
    states, row = made_up()
    before = choices(states, row)
    assert np.median(np.abs(before)) < 0.1
    found = firm_row(states, row)
    after = choices(states, found.row)
    assert ((after > 0) == (before > 0)).mean() >= 0.98
    assert found.firmness == pytest.approx(np.median(np.abs(after)))
    assert found.firmness > 1.5
    assert np.corrcoef(before, after)[0, 1] > 0.99
    assert found.loudest is not None
    assert found.loudest == pytest.approx(within(states, found.row).max())
    assert found.loudest < -LOUDEST
    others, _ = made_up(seed=1)
    assert within(replace(states, elsewhere=others.elsewhere), found.row).max() < -LOUDEST


def test_what_would_be_loud_within_answers_limits_the_firmness() -> None:
    """Every place within answers is some question's decision state, at which a firm row must speak."""
    states, row = made_up()
    loud = replace(states, elsewhere=states.decisions[np.arange(PLACES) % QUESTIONS] - [0.1, *[0] * (HIDDEN - 1)])
    assert firm_row(states, row).firmness > firm_row(loud, row).firmness + 0.8


def test_a_row_that_speaks_within_an_answer_is_silenced() -> None:
    """It does so in a dimension that no decision needs, at one place."""
    states, row = made_up()
    decisions, elsewhere = states.decisions.copy(), states.elsewhere.copy()
    decisions[:, 9], elsewhere[:, 9] = 0, 0
    elsewhere[7, 9] = 4.0
    states = replace(states, decisions=decisions, gaps=-decisions @ row, elsewhere=elsewhere)
    row = row + 0.5 * np.eye(HIDDEN)[2] + 6 * np.eye(HIDDEN)[9]
    assert within(states, row).max() > 0
    found = firm_row(states, row)
    assert found.loudest is not None
    assert found.loudest == pytest.approx(within(states, found.row).max())
    assert found.loudest < -QUIET + 0.5
    assert ((choices(states, found.row) > 0) == (choices(states, row) > 0)).mean() >= 0.98


def test_where_the_token_is_likely_by_itself_nothing_is_asked() -> None:
    states, row = made_up()
    natural = states.elsewhere_gaps.copy()
    natural[3] = 2.0
    found = firm_row(replace(states, elsewhere_gaps=natural), row)
    assert found.loudest is not None
    assert found.loudest < -LOUDEST  # of the other places
    assert found.firmness > 1.5
    likely = firm_row(replace(states, elsewhere_gaps=np.full(PLACES, 1.0)), row)
    assert likely.loudest is None  # no number in fit.json that JSON can't hold


def test_a_row_that_cannot_be_quiet_and_the_same_stays_as_it_is() -> None:
    """Within answers the states are the decisions', so that silence would change the choices."""
    states, row = made_up()
    row = row + 20 * np.eye(HIDDEN)[2]
    loud = replace(states, elsewhere=states.decisions[np.arange(PLACES) % QUESTIONS])
    found = firm_row(loud, row)
    assert found.row == pytest.approx(row)


@pytest.mark.parametrize("seed", range(3))
def test_newtons_method_finds_the_minimum(seed: int) -> None:
    states, _ = made_up(seed)
    root = whitening(states.elsewhere)
    decisions, elsewhere = (
        scipy.linalg.solve_triangular(root, s.T, lower=True).T for s in (states.decisions, states.elsewhere)
    )
    room = np.full(PLACES, -0.2)
    room[::2] = 1.0

    def loss(c: Vector) -> float:
        over = np.maximum(0, elsewhere @ c - room)
        return float(((decisions @ c) ** 2).mean() + 10 * (over**2).sum() + 1e-2 * c @ c)

    ours = _correction(decisions, elsewhere, room)
    assert (elsewhere @ ours > room + 1e-6).any()  # the room is needed
    assert loss(ours) < loss(0 * ours)
    best = scipy.optimize.minimize(loss, ours, method="BFGS", options={"gtol": 1e-8})
    assert loss(ours) == pytest.approx(best.fun, rel=1e-6)
