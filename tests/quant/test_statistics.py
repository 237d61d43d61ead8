"""Bootstrap intervals: known values, coverage on simulated data, and what must not narrow them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from quant.statistics import interval, mean, paired_difference, ratio, ratio_of_ratios, resampled, resampling_counts
from rpam_lite.errors import RpamError


def test_the_interval_of_a_mean_is_that_of_scipy() -> None:
    values = np.random.default_rng(1).exponential(size=400)
    found = interval(values, seed=5, draws=5000)
    theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=5000, rng=1).confidence_interval
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx(theirs, abs=0.01)
    assert found.seed == 5
    assert interval(values, seed=5, draws=5000) == found
    assert interval(values, seed=6, draws=5000) != found


def test_samples_of_one_question_are_no_further_evidence() -> None:
    values = np.random.default_rng(2).random((30, 1))
    assert interval(np.repeat(values, 64, axis=1)).low == pytest.approx(interval(values).low)
    wrong = interval(np.repeat(values, 64, axis=1).ravel())
    assert wrong.high - wrong.low < 0.3 * (interval(values).high - interval(values).low)


def test_wordings_of_one_problem_are_drawn_together() -> None:
    values = np.random.default_rng(3).random(40)
    names = [f"p{i:02}" for i in range(40)]
    once = interval(values)
    thrice = interval(np.tile(values, 3), clusters=names * 3)
    assert (thrice.value, thrice.low, thrice.high) == pytest.approx((once.value, once.low, once.high))
    apart = interval(np.tile(values, 3))
    assert apart.high - apart.low < 0.8 * (once.high - once.low)


def test_sums_and_resampled_rows_agree() -> None:
    rng = np.random.default_rng(4)
    values = rng.random((50, 4)) + 0.1
    of_rows = {
        mean: lambda rows: rows.mean(),
        ratio: lambda rows: rows[:, 0].sum() / rows[:, 1].sum(),
        ratio_of_ratios: lambda rows: (rows[:, 0].sum() / rows[:, 1].sum()) / (rows[:, 2].sum() / rows[:, 3].sum()),
    }
    for statistic, plain in of_rows.items():
        columns = values[:, :2] if statistic is ratio else values
        fast, slow = interval(columns, statistic, draws=200), interval(columns, resampled(plain), draws=200)
        assert (fast.value, fast.low, fast.high) == pytest.approx((slow.value, slow.low, slow.high))


def test_pairing_takes_the_spread_between_questions_out() -> None:
    rng = np.random.default_rng(5)
    a = rng.normal(0, 10, 100)
    b = a - 1 + rng.normal(0, 0.5, 100)
    paired = paired_difference(a, b)
    assert paired.value == pytest.approx(a.mean() - b.mean())
    assert 0.8 < paired.low < paired.value < paired.high < 1.2
    alone = interval(a)
    assert alone.high - alone.low > 10 * (paired.high - paired.low)
    # Another number of samples on the other side.
    assert paired_difference(np.repeat(a[:, None], 4, axis=1), b) == paired
    same = paired_difference(a, a, resampled(lambda rows: float(np.median(rows))), draws=100)
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_the_interval_covers_the_truth() -> None:
    """Accuracy of 80 questions of unlike difficulty with 4 samples each; truth 2 / 3."""
    rng = np.random.default_rng(6)
    covered = 0
    for trial in range(400):
        solved = rng.binomial(1, rng.beta(2, 1, 80)[:, None], (80, 4)).astype(np.float64)
        found = interval(solved, seed=trial, draws=400)
        covered += found.low <= 2 / 3 <= found.high
    # 95 % less what percentile intervals lose at 80 questions; +- 3 standard errors of 400 trials.
    assert 0.91 < covered / 400 < 0.98


def test_what_is_not_defined_is_nan_and_undefined_draws_are_left_out() -> None:
    assert np.isnan(interval(np.zeros((5, 2)), ratio).value)
    rare = np.array([[1.0, 1.0]] + [[0.0, 0.0]] * 4)  # one draw in three lacks the first question
    found = interval(rare, ratio)
    assert (found.value, found.low, found.high) == (1, 1, 1)


def test_bad_input_is_one_clear_error() -> None:
    with pytest.raises(RpamError, match="at least one question"):
        interval(np.zeros(0))
    with pytest.raises(RpamError, match="names 2 problems for 3 questions"):
        interval(np.zeros(3), clusters=["a", "b"])
    with pytest.raises(RpamError, match="got 3 and 4"):
        paired_difference(np.zeros(3), np.zeros(4))


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=30), st.integers(0, 5))
@settings(max_examples=30, deadline=None)
def test_intervals_move_with_the_values(values: list[float], seed: int) -> None:
    base = interval(np.array(values), seed=seed, draws=50)
    moved = interval(2 * np.array(values) + 3, seed=seed, draws=50)
    expected = tuple(2 * x + 3 for x in (base.value, base.low, base.high))
    assert (moved.value, moved.low, moved.high) == pytest.approx(expected, abs=1e-9)
    assert min(values) - 1e-9 <= base.low <= base.high <= max(values) + 1e-9


@given(st.integers(1, 20), st.integers(1, 6))
@settings(max_examples=20, deadline=None)
def test_every_draw_holds_as_many_problems_as_there_are(questions: int, problems: int) -> None:
    names = [str(i % problems) for i in range(questions)]
    counts = resampling_counts(questions, names, draws=20)
    first = [names.index(n) for n in set(names)]
    assert counts.shape == (21, questions)
    assert (counts[:, first].sum(1) == len(first)).all()
    assert all((counts[:, i] == counts[:, names.index(n)]).all() for i, n in enumerate(names))
