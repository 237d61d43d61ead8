"""Accuracy, tokens, think blocks and budgets of one model, against values counted by hand."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant.measures import (
    Answers,
    accuracy_within,
    budget_area,
    by_question,
    measure,
    pass_at_k,
    require_same_questions,
)
from quant.records import Record
from rpam_lite.errors import RpamError


def record(question: str, sample: int, correct: bool, tokens: int, think: int = 0, block: str = "none") -> Record:
    reason = "length" if block == "open" else "stop"
    return Record(f"{question}/{sample}", question, 1, "", correct, "", tokens, think, block, reason, "")


@pytest.fixture
def answers() -> Answers:
    return by_question(
        [
            record("a", 0, True, 10),
            record("b", 0, False, 400, 399, "open"),
            record("a", 1, True, 30, 20, "closed"),
            record("b", 1, True, 80, 60, "closed"),
        ]
    )


def test_samples_are_grouped_by_question(answers: Answers) -> None:
    assert (answers.questions, answers.samples) == (("a", "b"), 2)
    assert answers.tokens.tolist() == [[10, 30], [400, 80]]


def test_measures_are_those_counted_by_hand(answers: Answers) -> None:
    values = {name: found.value for name, found in measure(answers).items()}
    assert values == pytest.approx(
        {
            "pass@1": 0.75,
            "pass@2": 1.0,
            "tokens": 130,
            "think_tokens": 119.75,
            "correct_tokens": 40,
            "truncated": 0.25,
            "block_none": 0.25,
            "block_closed": 0.5,
            "block_open": 0.25,
        }
    )


def test_measures_of_a_model_that_is_never_right(answers: Answers) -> None:
    never = by_question([record("a", 0, False, 10), record("b", 0, False, 20)])
    found = measure(never)
    assert np.isnan(found["correct_tokens"].value)
    assert (found["pass@1"].value, found["pass@1"].high) == (0, 0)


@given(st.lists(st.booleans(), min_size=1, max_size=7), st.data())
@settings(max_examples=40, deadline=None)
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(verdicts: list[bool], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(verdicts)))
    subsets = list(combinations(verdicts, k))
    expected = sum(any(s) for s in subsets) / len(subsets)
    assert pass_at_k(np.array([verdicts], dtype=float), k) == pytest.approx([expected])


def test_pass_at_more_than_the_samples_is_refused(answers: Answers) -> None:
    for k in (0, 3):
        with pytest.raises(RpamError, match=f"pass@{k} can't be estimated from 2 samples"):
            pass_at_k(answers.correct, k)


def test_answers_within_a_budget(answers: Answers) -> None:
    curve = accuracy_within(answers, [9, 10, 30, 80, 1000]).mean(0)
    assert curve.tolist() == [0, 0.25, 0.5, 0.75, 0.75]
    assert accuracy_within(answers, [0, 20, 60], think_only=True).mean(0).tolist() == [0.25, 0.5, 0.75]


@pytest.mark.parametrize("think_only", [False, True])
@pytest.mark.parametrize("smallest", [None, 20.0])
def test_the_area_is_that_under_the_curve(answers: Answers, smallest: float | None, think_only: bool) -> None:
    """Against a sum over a fine grid of budgets; 50 tokens cut the longer answers off."""
    for largest in (50.0, 500.0):
        middles = (np.arange(20_000) + 0.5) / 20_000
        grid = largest * middles if smallest is None else smallest * (largest / smallest) ** middles
        expected = accuracy_within(answers, list(grid), think_only).mean(1)
        assert budget_area(answers, largest, smallest, think_only) == pytest.approx(expected, abs=1e-3)


def test_an_area_over_no_budgets_is_refused(answers: Answers) -> None:
    for largest, smallest in ((0.0, None), (10.0, 10.0), (10.0, 0.0)):
        with pytest.raises(RpamError, match="is not defined"):
            budget_area(answers, largest, smallest)


def test_records_that_do_not_belong_together_are_refused(answers: Answers) -> None:
    with pytest.raises(RpamError, match="no records to measure"):
        by_question([])
    with pytest.raises(RpamError, match="question a has 2 samples and question b has 1"):
        by_question([record("a", 0, True, 1), record("a", 1, True, 1), record("b", 0, True, 1)])
    with pytest.raises(RpamError, match="answered 2 questions and another 1"):
        require_same_questions(answers, by_question([record("a", 0, True, 1)]))
    with pytest.raises(RpamError, match="question number 2 is b for one model and c for another"):
        require_same_questions(answers, by_question([record("a", 0, True, 1), record("c", 0, True, 1)]))
