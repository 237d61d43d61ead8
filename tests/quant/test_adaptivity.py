"""Measures against the two parents: by hand, against scipy, and on models whose adaptivity is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from quant.adaptivity import (
    auroc,
    difficulty,
    execution,
    interpolation_index,
    long_share,
    macro_length_ratio,
    measure_adaptivity,
    overthink,
    slope,
    solves,
    spearman,
    underthink,
)
from quant.measures import Answers, by_question
from quant.records import Record
from rpam_lite.errors import RpamError

LONG = 32


def answers(
    correct: list[int], tokens: list[int], think: list[int] | None = None, level: list[int] | int = 0
) -> Answers:
    """One sample a question."""
    thought = think or [0] * len(correct)
    levels = [level] * len(correct) if isinstance(level, int) else level
    rows = enumerate(zip(correct, tokens, thought, levels, strict=True))
    return by_question(
        [Record(f"{i}/0", str(i), d, "", bool(c), "", t, h, "none", "stop", "") for i, (c, t, h, d) in rows]
    )


def test_the_index_places_a_model_between_its_parents() -> None:
    short, long = answers([1] * 6, [10] * 6), answers([1] * 6, [1000] * 5 + [10])
    index = interpolation_index(answers([1] * 6, [10, 1000, 100, 5, 5000, 77]), short, long)
    assert index[:5] == pytest.approx([0, 1, 0.5, 0, 1])
    assert np.isnan(index[5])


def test_an_adaptive_model_is_told_from_one_that_is_shorter_everywhere() -> None:
    level = [1 + i % 5 for i in range(200)]
    rng = np.random.default_rng(1)
    noise = rng.normal(0, 0.1, (2, 200))
    # Both parents write more where it is harder, as real ones do.
    short = answers([1] * 200, [round(50 * d) for d in level], level=level)
    long = answers([1] * 200, [round(1000 * d) for d in level], level=level)
    uniform = answers(
        [1] * 200, [round(200 * d * np.exp(e)) for d, e in zip(level, noise[0], strict=True)], level=level
    )
    share = np.array([0.1, 0.3, 0.5, 0.7, 0.9])[np.array(level) - 1]
    tokens = [round(50 * d * 20**a * np.exp(e)) for d, a, e in zip(level, share, noise[1], strict=True)]
    found = measure_adaptivity(answers([1] * 200, tokens, level=level), short, long, LONG)
    assert found["index_spearman"].low > 0.95
    assert found["index_slope"].low < 0.2 < found["index_slope"].high
    assert found["index"].value == pytest.approx(0.5, abs=0.01)
    flat = measure_adaptivity(uniform, short, long, LONG)
    assert flat["index_spearman"].low < 0 < flat["index_spearman"].high
    assert flat["index_slope"].low < 0 < flat["index_slope"].high
    assert flat["length_ratio"].value == pytest.approx(uniform.tokens.sum() / long.tokens.sum())


def test_over_and_underthinking_by_hand() -> None:
    #         q: both solve,  both, long only, long only, neither
    short = answers([1, 1, 0, 0, 0], [10, 12, 11, 10, 9])
    long = answers([1, 1, 1, 1, 0], [500, 400, 600, 700, 900])
    model = answers([1, 1, 1, 0, 0], [300, 20, 310, 30, 900], [200, 0, 250, 5, 800])
    assert overthink(model, short, LONG).tolist() == [[1, 1], [0, 1], [0, 0], [0, 0], [0, 0]]
    assert underthink(model, long, LONG).tolist() == [[0, 1], [0, 1], [0, 1], [1, 1], [0, 0]]
    found = measure_adaptivity(model, short, long, LONG, draws=200)
    assert found["overthink"].value == 0.5
    assert found["underthink"].value == 0.25
    # It thinks on questions 1, 3 and 5, as right as Long there; briefly right as Short on 2, and wrong as Short on 4.
    assert execution(model, short, long, LONG).tolist() == [0, 0, 0, 0, 0]
    assert execution(answers([0, 1, 0, 1, 0], [9] * 5, [200, 0, 250, 5, 800]), short, long, LONG).tolist() == [
        -1,
        0,
        -1,
        1,
        0,
    ]
    assert found["execution"].value == 0
    # Tokens of the labelled: 310 and 30 where only L solves it, 300 and 20 where S does.
    assert found["auroc"].value == 0.75
    assert found["length_ratio"].value == pytest.approx(1560 / 3100)
    assert found["correct_length_ratio"].value == pytest.approx((630 / 3) / (2200 / 4))


def test_labels_come_from_at_least_half_of_the_samples() -> None:
    rows = [("a", 1), ("a", 0), ("b", 0), ("b", 0)]
    parent = by_question(
        [Record(f"{q}/{i}", q, 0, "", bool(c), "", 9, 0, "none", "stop", "") for i, (q, c) in enumerate(rows)]
    )
    assert solves(parent).tolist() == [True, False]
    assert difficulty(parent).tolist() == [0.5, 1.0]
    assert difficulty(parent, k=2).tolist() == [0.0, 1.0]


def test_levels_are_the_difficulty_where_there_are_any() -> None:
    model = answers([1, 0, 1, 1], [9] * 4, [40, 32, 31, 50], level=[1, 2, 1, 2])
    assert difficulty(model).tolist() == [1, 2, 1, 2]
    share = long_share(model, LONG)
    assert {level: share[model.levels == level].mean() for level in (1, 2)} == {1: 0.5, 2: 1.0}


def test_the_macro_ratio_weighs_tasks_alike() -> None:
    one = (answers([1, 1], [10, 30]), answers([1, 1], [40, 40]))
    two = (answers([1], [900]), answers([1], [1000]))
    assert macro_length_ratio({"one": one, "two": two}) == pytest.approx((0.5 + 0.9) / 2)
    with pytest.raises(RpamError, match="at least one task"):
        macro_length_ratio({})
    with pytest.raises(RpamError, match="two: the long parent generated no tokens"):
        macro_length_ratio({"two": (two[0], answers([0], [0]))})
    with pytest.raises(RpamError, match="same questions"):
        macro_length_ratio({"mixed": (one[0], two[1])})


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.booleans()), min_size=2, max_size=40))
@settings(max_examples=60, deadline=None)
def test_ranks_slopes_and_areas_are_scipys(rows: list[tuple[int, int, bool]]) -> None:
    x, y, label = (np.array(column, dtype=np.float64) for column in zip(*rows, strict=True))
    if len(set(x)) > 1:
        assert slope(x, y) == pytest.approx(stats.linregress(x, y).slope, abs=1e-12)
        if len(set(y)) > 1:
            assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)
            assert -1 - 1e-12 <= spearman(x, y) <= 1 + 1e-12
    else:
        assert np.isnan(slope(x, y))
        assert np.isnan(spearman(x, y))
    high, low = y[label == 1], y[label == 0]
    if len(high) and len(low):
        expected = stats.mannwhitneyu(high, low).statistic / (len(high) * len(low))
        assert auroc(y, label) == pytest.approx(expected)
    else:
        assert np.isnan(auroc(y, label))


def test_what_has_no_value_is_nan() -> None:
    """No parent solves anything, and both have the same length."""
    same = answers([0, 0, 0], [10, 10, 10])
    found = measure_adaptivity(same, same, same, LONG, draws=50)
    undefined = {name for name, i in found.items() if np.isnan(i.value)}
    assert undefined == set(found) - {"length_ratio", "execution"}
    assert found["length_ratio"].value == 1
