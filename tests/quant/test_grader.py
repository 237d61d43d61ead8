"""The grader: reasoning traces as a person would grade them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from quant.tasks.grader import grade, is_gradable, last_boxed
from quant.tasks.verify import verified


@pytest.mark.parametrize(
    ("text", "gold", "correct"),
    [
        (r"\boxed{7}", "7", True),
        (r"\boxed{07}", "7", True),
        (r"\boxed{8}", "7", False),
        ("<think>\n3+4=7\n</think>\n\n\\boxed{7}", "7", True),
        # An early box inside a think block that never closes is a truncated answer.
        (r"<think> so \boxed{7} but wait", "7", False),
        # A box in the think block does not count where the answer has another.
        (r"<think>\boxed{7}</think> \boxed{8}", "7", False),
        (r"<think>\boxed{7}</think> seven", "7", False),
        # The last of several boxes counts.
        (r"\boxed{5}, no: \boxed{6}", "6", True),
        (r"\boxed{5}, no: \boxed{6}", "5", False),
        (r"\boxed{\frac{1}{2}}", "0.5", True),
        (r"\boxed{\frac{1}{2}", "0.5", False),
        (r"\boxed{70,000}", "70000", True),
        ("the answer is 7", "7", False),
        ("", "7", False),
        ("x" * 1_000_000, "7", False),
        (r"\boxed{" + "9" * 100_000 + "}", "7", False),
    ],
)
def test_grade(text: str, gold: str, correct: bool) -> None:
    assert grade(text, gold).correct is correct


def test_every_verdict_has_a_reason() -> None:
    assert grade("<think>", "7").reason == "think block not closed"
    assert grade("seven", "7").reason == "no \\boxed{} answer"


def test_an_answer_that_takes_for_ever_is_wrong_and_the_next_one_is_graded() -> None:
    tower = "9^{" * 6 + "9" + "}" * 6
    assert verified("7", tower, seconds=1.0) is not True
    assert grade(r"\boxed{\frac{2}{4}}", "0.5").correct


def test_last_boxed_needs_balanced_braces() -> None:
    assert last_boxed(r"\boxed{a{b}c} \boxed{d") == "a{b}c"
    assert last_boxed("no box") is None


@pytest.mark.parametrize("gold", ["", "  ", "2}{", r"\frac{1}{", "9" * 301])
def test_a_gold_answer_that_no_box_can_match_is_not_gradable(gold: str) -> None:
    assert not is_gradable(gold)


def test_real_gold_answers_grade_right_against_themselves(shared_data: Path) -> None:
    lines = (shared_data / "data" / "gsm8k_test.jsonl").read_text(encoding="utf-8").splitlines()
    golds = [json.loads(line)["answer"].split("#### ")[1].replace(",", "") for line in lines]
    assert len(golds) == 1319
    wrong = [gold for gold in golds if not is_gradable(gold) or not grade(f"\\boxed{{{gold}}}", gold).correct]
    assert not wrong
