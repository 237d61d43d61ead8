"""The comparison with the scalar curve at equal tokens."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from quant.frontier import (
    curve_at,
    gain_over_coin,
    gain_over_curve,
    level_policies,
    rate_over_curve,
    threshold_policies,
)
from quant.records import Record
from rpam_lite.errors import RpamError


def records(correct: list[bool], tokens: list[int]) -> list[Record]:
    pairs = enumerate(zip(correct, tokens, strict=True))
    return [Record(str(i), str(i), 1, "", c, "", t, 0, "none", "stop", "") for i, (c, t) in pairs]


@pytest.mark.parametrize(
    ("at", "expected"), [(10, 0.2), (15, 0.3), (20, 0.4), (30, 0.9), (5, 0.2), (99, 0.9), (25, 0.65)]
)
def test_the_curve_is_straight_between_its_points(at: float, expected: float) -> None:
    assert curve_at(np.array([10.0, 20, 30]), np.array([0.2, 0.4, 0.9]), at) == pytest.approx(expected)


def test_where_the_curve_passes_twice_its_better_passage_counts() -> None:
    assert curve_at(np.array([10.0, 30, 20]), np.array([0.0, 0.2, 0.9]), 25) == pytest.approx(0.55)


def test_a_point_of_the_curve_has_no_gain() -> None:
    rng = np.random.default_rng(1)
    curve = [
        records(list(rng.random(200) < share), list(map(int, rng.integers(1, 2 * mean, 200))))
        for share, mean in ((0.3, 10), (0.6, 50), (0.9, 90))
    ]
    gain = gain_over_curve(curve[1], curve)
    assert gain.gain == pytest.approx(0)
    assert gain.low == pytest.approx(0)
    assert gain.high == pytest.approx(0)


def test_a_better_model_has_a_gain_whose_interval_holds_it() -> None:
    rng = np.random.default_rng(2)
    tokens = [10] * 200
    short, long = records(list(rng.random(200) < 0.5), tokens), records(list(rng.random(200) < 0.5), [90] * 200)
    better = records(list(rng.random(200) < 0.9), [50] * 200)
    gain = gain_over_curve(better, [short, long])
    assert gain.low < gain.gain < gain.high
    assert gain.low > 0.2
    assert gain.gain == pytest.approx(gain.accuracy - gain.curve_accuracy)
    assert gain.tokens == 50


def test_copies_of_a_sample_change_nothing() -> None:
    """Four copies of each answer are no further evidence; the models need not have as many samples."""
    rng = np.random.default_rng(3)
    short, long = records(list(rng.random(100) < 0.4), [10] * 100), records(list(rng.random(100) < 0.8), [90] * 100)
    model = records(list(rng.random(100) < 0.8), list(map(int, rng.integers(1, 100, 100))))
    assert gain_over_curve([r for r in model for _ in range(4)], [short, long + long]) == gain_over_curve(
        model, [short, long]
    )


def test_samples_of_a_question_are_averaged() -> None:
    ends = records([False, True], [10, 20]), records([True, True], [110, 120])
    model = [*records([True, False], [40, 50]), *records([True, True], [60, 90])]
    gain = gain_over_curve(model, ends)
    assert (gain.tokens, gain.accuracy) == (60, 0.75)
    assert gain.curve_accuracy == pytest.approx(0.5 + 0.5 * 45 / 100)


def test_a_tossed_coin_lies_between_the_parents_whatever_the_interpolations_do() -> None:
    short, long = records([False, False, True, True], [10] * 4), records([True] * 4, [110] * 4)
    knows_when = records([True] * 4, [110, 110, 10, 10])
    coin = gain_over_coin(knows_when, short, long)
    assert (coin.curve_accuracy, coin.gain) == (pytest.approx(0.75), pytest.approx(0.25))
    thinks_about_the_easy = records([False, False, True, True], [10, 10, 110, 110])
    assert gain_over_coin(thinks_about_the_easy, short, long).gain == pytest.approx(-0.25)


def test_other_questions_are_refused() -> None:
    model = records([True, True], [1, 2])
    with pytest.raises(RpamError, match="question number 1 is 0 for one model and 1 for another"):
        gain_over_curve(model, [model, model[::-1]])


def test_a_rate_is_compared_with_the_curves_lowest_at_equal_tokens() -> None:
    ones = np.ones(4)
    short, high, low, long = (np.stack([share * ones, ones], axis=1) for share in (0.0, 0.8, 0.2, 1.0))
    tokens = [30 * ones, 10 * ones, 20 * ones, 40 * ones, 30 * ones, 90 * ones]
    # At 30 tokens the curve stands at 0.5 on its way from 20 to 40, and at 0.2 where it comes back.
    model = np.stack([0.1 * ones, ones], axis=1)
    found = rate_over_curve([model, short, high, low, low, long], tokens)
    assert found.value == pytest.approx(0.1 - 0.2)
    several = rate_over_curve([np.array([[1.0, 1], [0, 1], [0, 1], [0, 1]]), short, long], [20 * ones, *tokens[1:3]])
    assert several.value == pytest.approx(0.25 - 1.0)
    assert several.low < several.value < several.high


def test_threshold_policies_go_from_short_to_long() -> None:
    easy_and_hard = (1, 1, 2, 3)
    short = [
        replace(r, level=v) for r, v in zip(records([True, True, False, False], [5] * 4), easy_and_hard, strict=True)
    ]
    long = [replace(r, level=v) for r, v in zip(records([True] * 4, [20, 20, 60, 100]), easy_and_hard, strict=True)]
    tokens, accuracy = threshold_policies(short, long)
    assert tokens == [5, (15 + 100) / 4, (10 + 160) / 4, 50]
    assert accuracy == [0.5, 0.75, 1.0, 1.0]


def levelled(correct: list[bool], tokens: list[int], levels: list[int]) -> list[Record]:
    return [replace(r, level=level) for r, level in zip(records(correct, tokens), levels, strict=True)]


def test_level_policies_think_first_where_a_token_gains_most() -> None:
    levels = [1, 1, 2, 2, 3, 3, 4, 4]
    short = levelled([True, True, True, False, False, False, True, False], [5] * 8, levels)
    #                        knows, one right of two, none, and thinking about level 4 spoils it
    long = levelled([True] * 6 + [False, False], [20, 20, 25, 25, 205, 205, 50, 50], levels)
    found = level_policies(short, long)
    assert found.tokens == [5, (6 * 5 + 2 * 25) / 8, (4 * 5 + 2 * 25 + 2 * 205) / 8]
    assert found.accuracy == [0.5, 5 / 8, 7 / 8]
    assert found.overthinking == [0, 0.25, 0.25]


def test_the_best_choice_of_levels_is_nowhere_below_the_threshold_policy() -> None:
    rng = np.random.default_rng(3)
    levels = list(map(int, rng.integers(1, 6, 300)))
    short = levelled([bool(rng.random() < 1 / v) for v in levels], [5] * 300, levels)
    long = levelled([bool(rng.random() < 0.9) for _ in levels], [int(30 * v) for v in levels], levels)
    found = level_policies(short, long)
    for tokens, accuracy in zip(*threshold_policies(short, long), strict=True):
        assert curve_at(np.array(found.tokens), np.array(found.accuracy), tokens) >= accuracy - 1e-12


def test_where_short_is_never_right_nothing_is_overthought() -> None:
    found = level_policies(levelled([False], [5], [1]), levelled([True], [9], [1]))
    assert found.accuracy == [0, 1]
    assert np.isnan(found.overthinking).all()
