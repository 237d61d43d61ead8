"""The generator of the embedded pair: right answers, disjoint splits, the promised levels."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quant.tasks.grader import grade
from recipes.tiny import cups
from recipes.tiny.arithmetic import MAX_TOTAL, ask, draw_problem, long_response, short_response, split_of
from recipes.tiny.families import CUPS
from recipes.tiny.questions import draw_questions
from recipes.tiny.splits import LEVELS
from tests.conftest import ROOT


@given(st.integers(), st.sampled_from(LEVELS))
def test_a_problem_has_its_level_and_stays_in_range(seed: int, level: int) -> None:
    problem = draw_problem(random.Random(seed), level, "train")
    assert problem.level == level
    assert all(0 <= total <= MAX_TOTAL for total in problem.totals)
    assert problem.answer == eval(problem.expression)


@given(st.integers(), st.sampled_from(LEVELS))
def test_both_responses_grade_right(seed: int, level: int) -> None:
    problem = draw_problem(random.Random(seed), level, "train")
    for response in (short_response(problem), long_response(problem)):
        assert grade(response, str(problem.answer)).correct


@given(st.integers(), st.sampled_from(LEVELS))
def test_the_question_mentions_every_operand_in_order(seed: int, level: int) -> None:
    rng = random.Random(seed)
    problem = draw_problem(rng, level, "train")
    digits = "".join(c if c.isdigit() else " " for c in ask(problem, rng)).split()
    assert digits == [str(problem.start), *(str(abs(k)) for k in problem.operands)]


def test_splits_are_disjoint_by_content() -> None:
    expressions = {
        split: {p.expression for p, _ in draw_questions(split, 60, seed=3)}
        for split in ("train", "calibration", "evaluation")
    }
    assert not expressions["train"] & expressions["calibration"]
    assert not expressions["train"] & expressions["evaluation"]
    assert not expressions["calibration"] & expressions["evaluation"]


@pytest.mark.parametrize(("split", "per_level"), [("calibration", 32), ("evaluation", 50)])
def test_the_shipped_files_are_what_the_generator_makes(split: str, per_level: int) -> None:
    lines = (ROOT / f"recipes/tiny/{split}.jsonl").read_text(encoding="utf-8").splitlines()
    made = list(draw_questions(split, per_level, seed=1))
    assert [json.loads(line)["question"] for line in lines] == [question for _, question in made]
    assert [json.loads(line)["answer"] for line in lines] == [str(problem.answer) for problem, _ in made]
    assert all(split_of(problem) == split for problem, _ in made)


@given(st.integers(), st.sampled_from(LEVELS))
def test_swaps_move_the_thing_and_grade_right(seed: int, level: int) -> None:
    problem = cups.draw_swaps(random.Random(seed), level, "train")
    hidden = {problem.cup: "it"}
    for a, b in problem.pairs:
        hidden[a], hidden[b] = hidden.get(b, ""), hidden.get(a, "")
    assert problem.level == level
    assert hidden[problem.answer] == "it"
    for response in (cups.short_response(problem), cups.long_response(problem)):
        assert grade(response, problem.answer, grader=CUPS.grader).correct


def test_questions_of_cups_name_every_swap() -> None:
    for problem, question in draw_questions("evaluation", 5, seed=1, family=CUPS):
        assert cups.split_of(problem) == "evaluation"
        swaps = [f"{n}. Swap {a} and {b}." for n, (a, b) in enumerate(problem.pairs, 1)]
        assert " ".join(swaps) in question
        assert question.index(f"up {problem.cup}") < question.index("1. ")
