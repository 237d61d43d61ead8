"""Which answers stand side by side, and how a generated text is taken apart."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from quant.records import Record
from quant.tasks.questions import Question
from rpam_lite.report.answers import choose_examples, split_think
from tests.rpam_lite.finished_run import make_run, report_of


@pytest.mark.parametrize(
    ("text", "opened", "expected"),
    [
        ("4", False, ("", "4")),
        ("<think>\na\n</think>\n\n4", False, ("a", "4")),
        ("a</think>4", True, ("a", "4")),
        ("<think>never", False, ("never", "")),
        ("never", True, ("never", "")),
        ("First. <think>never", False, ("never", "First.")),
        ("<think>a</think> b </think> c", False, ("a</think> b", "c")),
    ],
)
def test_think_and_answer_apart(text: str, opened: bool, expected: tuple[str, str]) -> None:
    assert split_think(text, opened) == expected


def test_one_question_of_each_kind(tmp_path: Path) -> None:
    examples = report_of(*make_run(tmp_path)).examples
    assert [(e.title, e.count) for e in examples] == [
        ("All right, and the merge is brief", 4),
        ("The merge thinks where it must", 4),
        ("The merge thinks in vain", 2),
        ("The merge is wrong where Long is right", 2),
    ]
    short, long, merge = examples[1].answers
    assert [a.model for a in (short, long, merge)] == ["Short", "Long", "Merge"]
    assert [a.correct for a in (short, long, merge)] == [False, True, True]
    assert merge.think.startswith("so it is")
    assert merge.text == f"\\boxed{{{examples[1].gold}}}"
    # The one with the median length: of 8 + 2, 8 + 3, 8 + 8, 8 + 9 think tokens the third.
    assert merge.think_tokens == 16


def record(key: str, correct: bool, text: str = "", **changes: object) -> Record:
    base = Record(f"{key}/0", key, 0, "4", correct, "", 3, 0, "none", "stop", text)
    return replace(base, **changes)  # type: ignore[arg-type]


def test_an_endless_answer_is_shown_and_cut() -> None:
    endless = "<think>" + "wait " * 10000
    questions = {"1": Question("1", "2 + 2?", "4")}
    merge = record("1", False, endless, think_tokens=10000, think_block="open", finish_reason="length")
    (example,) = choose_examples(questions, [record("1", False)], [record("1", False)], [merge], 8)
    assert example.title == "The merge never comes to an end"
    assert example.answers[2].truncated
    assert len(example.answers[2].think) < 7000
    assert "characters are left out here" in example.answers[2].think


def test_questions_that_a_parent_never_answered_are_passed_over() -> None:
    questions = {"1": Question("1", "2 + 2?", "4")}
    assert choose_examples(questions, [], [record("1", True)], [record("1", True)], 8) == []
