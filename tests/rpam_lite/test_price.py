"""The dial: from a token's price to labels and weights, and from a family of merges to the one wished for."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from quant.frontier import cheapest_above, most_accurate_within
from rpam_lite.errors import RpamError
from rpam_lite.patterns.price import both_answers, family, priced, regret, set_aside, with_estimates
from rpam_lite.patterns.rule import Score, cost
from rpam_lite.recipe import Dial, Fit, Recipe, Setting, load_recipe, with_dial
from tests.conftest import ROOT


def row(long: int, short: int, tokens_long: float = 100, tokens_short: float = 10, key: str = "q") -> dict[str, Any]:
    return {
        "key": key,
        "level": 1,
        "prompt_ids": [1],
        "samples_long": 4,
        "samples_short": 4,
        "correct_long": long,
        "correct_short": short,
        "tokens_long": tokens_long,
        "tokens_short": tokens_short,
        "response_long": [7, 8],
        "response_short": [9],
    }


def test_the_regret_is_accuracy_less_the_price_of_tokens() -> None:
    assert regret(row(4, 1), price=0) == 75
    assert regret(row(4, 1), price=100) == pytest.approx(75 - 9)
    assert regret(row(4, 4), price=100) == pytest.approx(-9)


def test_without_a_price_what_both_can_do_weighs_nothing() -> None:
    assert priced(row(4, 4), 0).weight == 0
    assert (priced(row(4, 1), 0).selected, priced(row(4, 1), 0).weight) == ("long", 75)
    assert priced(row(0, 0), 500).weight == 0


@given(
    st.integers(0, 4),
    st.integers(0, 4),
    st.floats(1, 500),
    st.floats(1, 500),
    st.floats(0, 5000, allow_subnormal=False),
)
def test_it_selects_what_the_rule_cost_selects(
    long: int, short: int, tokens_long: float, tokens_short: float, price: float
) -> None:
    found = priced(row(long, short, tokens_long, tokens_short), price)
    label = cost(Score(long, tokens_long), Score(short, tokens_short), 4, price)
    if label is None:
        assert found.weight == 0
    elif abs(regret(row(long, short, tokens_long, tokens_short), price)) > 1e-6:
        assert found.selected == label


def test_a_family_shares_its_traces() -> None:
    rows = [row(4, 1, key="hard"), row(4, 4, key="easy"), row(0, 0, key="hopeless")]
    found = family(rows, [0, 2000])
    # At 2000 points a 1000 tokens, 90 more tokens cost 180 points: more than the hard question gains.
    assert [(t.key, t.label, t.response_ids) for t in found.traces] == [
        ("hard", "long", (7, 8)),
        ("hard", "short", (9,)),
        ("easy", "short", (9,)),
    ]
    assert found.weights[0] == [75, 0, 0]
    assert found.weights[2000] == pytest.approx([0, 105, 180])


def test_a_question_that_one_parent_was_never_asked_is_passed_over() -> None:
    assert family([row(4, 1) | {"samples_long": 0, "tokens_long": None}], [10]).traces == []


def test_what_is_set_aside_is_even_over_levels_and_leaves_two_thirds_of_each() -> None:
    rows = [
        row(4, 4, key=f"{level}-{i}") | {"level": level} for level, n in ((1, 30), (2, 9), (3, 2)) for i in range(n)
    ]
    found = set_aside(rows, 15, seed=1)
    assert [sum(key.startswith(f"{level}-") for key in found) for level in (1, 2, 3)] == [5, 3, 0]
    assert found == set_aside(rows, 15, seed=1) != set_aside(rows, 15, seed=2)
    assert found == [r["key"] for r in rows if r["key"] in found]  # in their order
    assert len(set_aside(rows, 1000, seed=1)) == 10 + 3


def test_the_wish_is_met_where_it_can_be() -> None:
    accuracy, tokens = [0.5, 0.9, 0.8], [10.0, 100.0, 60.0]
    assert vars(most_accurate_within(accuracy, tokens, 70)) == {"index": 2, "met": True}
    assert vars(most_accurate_within(accuracy, tokens, 5)) == {"index": 0, "met": False}
    assert vars(cheapest_above(accuracy, tokens, 0.75)) == {"index": 2, "met": True}
    assert vars(cheapest_above(accuracy, tokens, 0.95)) == {"index": 1, "met": False}


def test_the_command_lines_dial_takes_the_recipes_place() -> None:
    recipe = load_recipe(ROOT / "recipes/tiny.yaml")
    found = with_dial(recipe, {"--price": "0,50"}, {"max_tokens_share": 0.5})
    assert (found.dial.prices, found.dial.budgets, found.dial.max_tokens_share) == ((0, 50), (), 0.5)
    assert found.parents == recipe.parents
    assert with_dial(recipe, {"--budget": "0.5,1"}, {}).dial.settings == (Setting("budget", 0.5), Setting("budget", 1))
    wished = with_dial(recipe, {"--points": "5"}, {"max_points_below_long": 2.0}).dial
    assert wished.settings == (Setting("points", 5), Setting("points", 2))
    for wrong in ("a", "1,1", "-1", "nan", "inf", ""):
        for option in ("--price", "--budget", "--points"):
            with pytest.raises(RpamError, match=option):
                with_dial(recipe, {option: wrong}, {})
    with pytest.raises(RpamError, match=r"--max-tokens-share 0\.5 --max-points-below-long 1\.0: .*not both"):
        with_dial(recipe, {"--price": "1"}, {"max_tokens_share": 0.5, "max_points_below_long": 1.0})


def test_a_member_has_a_name_for_every_place() -> None:
    dial = Dial(prices=(100,), budgets=(0.6,), points=(1, 2.5), max_tokens_share=0.5)
    assert [(s.name, s.label, s.stem) for s in dial.settings] == [
        ("price 100", "100", "price-100"),
        ("budget 60 %", "60 %", "budget-0.6"),
        ("within 1 point", "1 point", "points-1"),
        ("within 2.5 points", "2.5 points", "points-2.5"),
        ("budget 50 %", "50 %", "budget-0.5"),
    ]
    assert dial.decides
    assert not Dial(prices=(100,), by="fit").decides
    assert not Dial().decides


def test_what_is_wished_for_is_a_member() -> None:
    assert Dial(max_points_below_long=2).settings == (Setting("points", 2),)
    assert Dial(budgets=(0.5, 0.8), max_tokens_share=0.5).settings == (Setting("budget", 0.5), Setting("budget", 0.8))
    assert Dial(by="fit", prices=(100,), max_points_below_long=2).settings == (Setting("price", 100),)


def test_where_a_row_decides_the_fit_is_of_how_both_parents_answer() -> None:
    recipe = load_recipe(ROOT / "recipes/tiny.yaml")
    assert recipe.dial.decides
    assert (recipe.objective.form, recipe.fit.form) == ("execution", "sequence")
    raw = yaml.safe_load((ROOT / "recipes/tiny.yaml").read_text(encoding="utf-8"))
    cases: list[tuple[dict[str, Any], str, str]] = [
        ({"prices": [1], "by": "fit"}, "auto", "sequence"),
        ({"prices": [1]}, "mean", "mean"),
    ]
    for dial, form, found in cases:
        changed = Recipe.model_validate(raw | {"dial": dial, "fit": {"kl_form": form}})
        assert changed.objective.form == found
    assert not Recipe.model_validate(raw | {"merge": {"method": "ties"}}).family.settings  # nothing is fitted there
    for wrong in ({"preset": "paper"}, {"contrastive_weight": 0.1}, {"output_contrast_weight": 1.0}, {"kl_tokens": 1}):
        with pytest.raises(ValueError, match=r"set `dial.by: fit`"):
            Recipe.model_validate(raw | {"fit": wrong})
    for dial, _, _ in ({}, "", ""), cases[0]:
        with pytest.raises(ValueError, match="execution` leaves the choice"):
            Recipe.model_validate(raw | {"dial": dial, "fit": {"kl_form": "execution"}})


def test_both_parents_answers_weigh_as_often_as_they_are_right() -> None:
    rows = [row(4, 1, key="a"), row(2, 0, key="b"), row(4, 0, key="c") | {"samples_short": 0}]
    traces, weights = both_answers(rows)
    assert [(t.key, t.label) for t in traces] == [("a", "long"), ("a", "short"), ("b", "long"), ("c", "long")]
    assert weights == [1.0, 0.25, 0.5, 1.0]


def test_a_parent_that_was_never_asked_counts_as_right_as_the_other_in_its_usual_tokens() -> None:
    unasked = {"samples_long": 0, "correct_long": 0, "tokens_long": None, "response_long": None}
    rows = [
        row(4, 4, tokens_long=40),
        row(4, 4, tokens_long=60),
        row(4, 4) | unasked,
        row(4, 3) | unasked | {"level": 9},
    ]
    rows.append(row(2, 0, tokens_long=200) | {"level": 2})
    found = with_estimates(rows)
    assert [r["tokens_long"] for r in found] == [40, 60, 50, 100, 200]  # of level 9 none was asked
    assert regret(found[2], price=100) == pytest.approx(-4)
    assert regret(found[3], price=100) == pytest.approx(-9)
    assert rows[2]["tokens_long"] is None


@pytest.mark.parametrize(
    ("section", "given", "told"),
    [
        (Dial, {"questions": 0}, "`budgets`, `points`, `prices` or a wish is missing"),
        (Dial, {"by": "fit", "max_tokens_share": 0.5}, "under `by: fit` `prices` are missing"),
        (Dial, {"budgets": [0.5], "by": "fit"}, "`budgets` needs `by: decision`"),
        (Dial, {"points": [1], "by": "fit"}, "`points` needs `by: decision`"),
        (Dial, {"points": [1, 1]}, "holds one twice"),
        (Dial, {"max_points_below_long": float("inf")}, "finite"),
        (Dial, {"budgets": [0.5, 0.5]}, "holds one twice"),
        (Dial, {"prices": [1000000.1, 1000000.2]}, "six digits count"),
        (Fit, {"learning_rate": 0.1}, "optimizer: adam"),
        (Fit, {"temperature": 0.2}, "contrastive_weight"),
        (Fit, {"output_temperature": 0.2}, "output_contrast_weight"),
        (Fit, {"decision_share": 0.2}, "kl_form: mean"),
    ],
)
def test_a_key_that_would_do_nothing_is_refused(section: Any, given: dict[str, float], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        section.model_validate(given)
