"""The grader: reasoning traces as a person would grade them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from quant.tasks import workers
from quant.tasks.grader import Verdict, grade, is_gradable, last_boxed
from quant.tasks.verify import verified
from tests.conftest import ROOT


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


# What a person would say. The reasons stand in quant/tasks/equal.py.
@pytest.mark.parametrize(
    ("gold", "answer", "correct"),
    [
        # Numbers.
        ("7", "007", True),
        ("7", "+7", True),
        ("7", "7.0", True),
        ("7", "-7", False),
        ("-1./3", r"-\frac13", True),
        ("1.5", "1 1/2", True),
        ("1", "1 1/2", False),
        (r"\frac13", r"0.\overline{3}", True),
        (r"\frac16", r"0.1\overline{6}", True),
        ("0", r"0.\overline{3}", False),
        (r"\frac13", "0.33", False),
        (r"\pi", "3.14", False),
        # Thousands, and powers of ten.
        ("1234567", "1,234,567", True),
        ("70000", r"70\,000", True),
        ("70000", "70 000", True),
        ("70000", "70{,}000", True),
        ("58,500", r"58,500\,\text{ cm}", True),
        (r"11,\! 111,\! 100", "11111100", True),
        ("1234", "12,34", False),
        ("1000", "1.000", False),
        ("2.75e11", r"2.75 \times 10^{11} \text{ erg}", True),
        ("0.001", "1e-3", True),
        # Units: one may be missing, two must agree.
        (r"5\text{ cm}", "5", True),
        ("5", r"5\mathrm{~cm}", True),
        (r"5\text{ cm}", r"5\text{ centimeters}", True),
        (r"5\text{ cm}", r"5\text{ m}", False),
        (r"5\text{ cm}^2", r"5\mathrm{~m}^2", False),
        ("42", r"\text{42 apples}", True),
        ("18", r"\$18", True),
        ("90", r"90^\circ", True),
        # Percent: the number and the fraction, for one never knows which the question wanted.
        (r"10\%", "10", True),
        ("10", r"10\%", True),
        (r"10\%", "0.1", True),
        ("10", "0.1", False),
        (r"10\%", r"0.1\%", False),
        # Bases: one may be missing, two must agree, and so must the digits.
        ("2516_8", "2516", True),
        ("2516", "2516_8", True),
        ("2516_8", "2516_{8}", True),
        ("2516_8", "2516_9", False),
        ("10101_2", "21", False),
        ("x_1", "x_2", False),
        # Intervals and inequalities, in both directions.
        ("1<x<2", "(1,2)", True),
        ("(1,2)", "1<x<2", True),
        ("(1,2)", r"1 \le x < 2", False),
        (r"[1,\infty)", r"x \ge 1", True),
        (r"[1,\infty)", "x > 1", False),
        (r"(-\infty,1)\cup(2,\infty)", r"x<1\text{ or }x>2", True),
        (r"(-\infty,1)\cup(2,\infty)", r"x<1\text{ or }x>3", False),
        (r"(-\infty,1)\cup(2,\infty)", "x<1", False),
        # Sets and pairs.
        (r"\{1,2\}", r"\{2,1\}", True),
        ("1,2", r"x=2\text{ or }x=1", True),
        ("1,2", "1", False),
        ("7", r"7\text{ or }8", False),
        (r"\left(1,2\right)", "(1, 2)", True),
        ("(2,1)", "1,2", False),
        ("(1,2)", r"\{1,2\}", False),
        (r"\{1,2\}", "(1,2)", False),
        # Matrices, fractions, expressions.
        (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{bmatrix}1&2\\3&4\end{bmatrix}", True),
        (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix}1&3\\2&4\end{pmatrix}", False),
        (r"\frac34", r"\dfrac{3}{4}", True),
        (r"\frac{14}{3}", r"4\frac{2}{3}", True),
        ("p - q", "q - p", False),
        ("y=2x+3", "2x+3", True),
        # Words.
        (r"\text{Evelyn}", "Evelyn.", True),
        (r"\text{June 20}", "June 20", True),
        (r"\text{even}", r"\text{odd}", False),
        ("C", r"\text{(C)}", True),
        ("7", "", False),
    ],
)
def test_answers_as_a_person_grades_them(gold: str, answer: str, correct: bool) -> None:
    verdict = grade(f"So it is $\\boxed{{{answer}}}$.", gold)
    assert (verdict.correct, verdict.path) == (correct, "box"), verdict


@pytest.mark.parametrize(
    ("text", "think_open", "reason"),
    [
        (r"first \boxed{7}", True, "think block not closed"),
        (r"first </think> \boxed{7}", True, "same text"),
        (r"first </think> \boxed{7}", False, "same text"),
        (r"<think>a</think> b <think> \boxed{7}", False, "think block not closed"),
        (r"\boxed{7}", False, "same text"),
    ],
)
def test_think_blocks_that_the_prompt_or_the_text_opened(text: str, think_open: bool, reason: str) -> None:
    assert grade(text, "7", think_open=think_open).reason == reason


def test_without_a_box_the_fallback_is_taken_and_told() -> None:
    text = r"<think>9</think> so there are $\frac{14}{2}$ of them."
    assert grade(text, "7", fallback=True) == Verdict(True, "math-verify", "no box")
    assert not grade(text, "7").correct
    assert grade("I do not know", "7", fallback=True) == Verdict(False, "no answer")
    assert grade(r"7 \boxed{8}", "7", fallback=True) == Verdict(False, "integers compared", "box")
    assert grade("7", "7", truncated=True, fallback=True).reason == "truncated"


@pytest.mark.parametrize(
    ("text", "path", "correct"),
    [
        (r"\boxed{C}", "box", True),
        (r"\boxed{c}", "box", True),
        (r"\boxed{\textbf{(C) }42}", "box", True),
        (r"\boxed{C. carbon}", "box", True),
        (r"Answer: B, or rather \boxed{\text{C}}", "box", True),
        (r"\boxed{B, C}", "box", False),
        ("**Answer:** (C)", "choice line", True),
        ("The answer is option C.", "choice line", True),
        ("Answer: B\nno, answer: C", "choice line", True),
        (r"\boxed{42} Answer: C", "choice line", True),
        ("Answer: B or C", "choice line", False),
        ('{"answer": "C"}', "choice json", True),
        ("Answer: A cat sat on it", "", False),
        ("A, B and C are all there", "", False),
    ],
)
def test_multiple_choice(text: str, path: str, correct: bool) -> None:
    verdict = grade(text, "C", grader="choice")
    assert (verdict.path, verdict.correct) == (path, correct), verdict


def test_exact_and_regex() -> None:
    assert grade("<think>x</think>\n Yes, \n it IS ", "yes, it is", grader="exact") == Verdict(
        True, "texts compared", "text"
    )
    assert grade(r"no \boxed{ Yes }", "yes", grader="exact").path == "box"
    assert not grade("yes and no", "yes", grader="exact").correct
    assert grade("#### 1\n#### 22", "22", grader="regex", pattern=r"#### (\d+)").correct
    assert grade("22 of 23", "23", grader="regex", pattern=r"\d+") == Verdict(True, "texts compared", "pattern")
    assert grade("none", "22", grader="regex", pattern=r"#### (\d+)").reason == "no match of the pattern"


@pytest.mark.parametrize(
    "junk", ["x", r"\boxed{", "{", "answer: ", "Answer is A or ", r"\overline{", "</think><think>"]
)
@pytest.mark.parametrize("grader", ["math", "choice", "exact"])
def test_a_megabyte_of_garbage_is_wrong_and_quick(junk: str, grader: str) -> None:
    started = time.monotonic()
    assert not grade(junk * (1_000_000 // len(junk)), "7", grader=grader, fallback=True).correct
    assert time.monotonic() - started < 8


def test_several_processes_grade_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    before = workers._free.qsize()
    pairs = [(f"{n}/7", f"\\frac{{{2 * n}}}{{14}}") for n in range(1, 20)]
    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(lambda pair: verified(*pair), pairs))
    assert workers._free.qsize() == before == workers.WORKERS


def test_numbers_within_the_tolerance_are_right() -> None:
    assert grade(r"\boxed{4.3}", "4.2", tolerance=0.1).correct
    assert not grade(r"\boxed{4.31}", "4.2", tolerance=0.1).correct
    assert not grade(r"\boxed{4.3}", "4.2").correct
    assert grade(r"\boxed{2.1, 1.1}", "1,2", tolerance=0.2).correct
    assert not grade(r"\boxed{1.1}", "1,2", tolerance=0.2).correct


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
    assert last_boxed(r"\boxed{\left\{ 1, 2 \right.}") == r"\left\{ 1, 2 \right."
    assert last_boxed(r"\boxed {7} } {") == "7"


@pytest.mark.parametrize("gold", ["", "  ", "2}{", r"\frac{1}{", "9" * 301])
def test_a_gold_answer_that_no_box_can_match_is_not_gradable(gold: str) -> None:
    assert not is_gradable(gold)


# Gold answers of MATH-500 that math-verify, as equal.py mends it, can't match with themselves: none.
EXCEPTIONS: set[str] = set()


def test_real_gold_answers_grade_right_against_themselves(shared_data: Path) -> None:
    lines = (shared_data / "data" / "math500_test.jsonl").read_text(encoding="utf-8").splitlines()
    golds = [json.loads(line)["answer"] for line in lines]
    assert len(golds) == 500

    def right(gold: str) -> bool:
        # is_gradable parses, grade compares the texts first.
        return is_gradable(gold) and grade(f"\\boxed{{{gold}}}", gold).correct

    with ThreadPoolExecutor(workers.WORKERS) as threads:
        wrong = {gold for gold, is_right in zip(golds, threads.map(right, golds), strict=True) if not is_right}
    assert wrong == EXCEPTIONS


def test_importing_math_verify_is_not_counted_as_grading(tmp_path: Path) -> None:
    """It takes longer than an answer may where nothing is cached; every answer was wrong there."""
    (tmp_path / "math_verify.py").write_text(
        "import time\ntime.sleep(1.5)\ndef parse(text, **_): return [text]\ndef verify(a, b, **_): return a == b\n",
        encoding="utf-8",
    )
    code = "from quant.tasks.verify import verified; print(*(verified('1', gold, seconds=1.0) for gold in '12'))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    command = [sys.executable, "-c", code]
    told = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", check=True)
    assert told.stdout.split() == ["True", "False"]
