"""Graders of a user: functions and patterns, found, refused, and stopped where they never return."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from quant.tasks import grader as grader_module
from quant.tasks import verify
from quant.tasks.grader import Verdict, check_grader, grade
from rpam_lite.errors import RpamError

HERE = "tests.quant.test_grader_functions"


def longer_than_gold(answer: str, gold: str) -> bool:
    print("what a grader prints is no answer")
    return len(answer) > len(gold)


def never_returns(answer: str, gold: str) -> bool:
    # What it starts inherits the pipe for answers.
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    while True:
        time.sleep(1)


def stumbles(answer: str, gold: str) -> bool:
    return bool(int(answer) == int(gold))


def dies(answer: str, gold: str) -> bool:
    os._exit(1)


def returns_text(answer: str, gold: str) -> str:
    return answer


def test_functions_of_a_user(monkeypatch: pytest.MonkeyPatch) -> None:
    assert grade("<think>x</think> abc ", "ab", grader=f"{HERE}:longer_than_gold") == Verdict(
        True, "function", "function"
    )
    assert not grade("<think>long</think> ab ", "ab", grader=f"{HERE}:longer_than_gold").correct
    assert "ValueError" in grade("seven", "7", grader=f"{HERE}:stumbles").reason
    assert "its process ended" in grade("seven", "7", grader=f"{HERE}:dies").reason
    with pytest.raises(RpamError, match="returned 'abc'; it must return True or False"):
        grade("abc", "7", grader=f"{HERE}:returns_text")
    point = EntryPoint("longer", f"{HERE}:longer_than_gold", "rpam_lite.graders")
    monkeypatch.setattr(grader_module, "entry_points", lambda group, name: [point] if name == "longer" else [])
    check_grader("longer")
    assert grade("abc", "ab", grader="longer").correct


def test_a_function_younger_than_the_processes_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("one", "two"):
        # With a process that is there already, and does not know the folder.
        assert grade("\\boxed{1/2}", "0.5").correct
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{folder}.py").write_text("def same(answer, gold):\n    return answer == gold\n")
        monkeypatch.syspath_prepend(tmp_path / folder)
        assert grade("a", "a", grader=f"{folder}:same").correct
    monkeypatch.chdir(tmp_path)
    (tmp_path / "three.py").write_text("def same(answer, gold):\n    return answer == gold\n")
    check_grader("three:same")


def test_functions_and_patterns_that_never_return(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grader_module, "SECONDS", 0.5)
    assert grade("x", "7", grader=f"{HERE}:never_returns").reason == "took too long"
    monkeypatch.setattr(
        grader_module, "last_match", lambda pattern, text: verify.last_match(pattern, text, seconds=0.5)
    )
    assert grade("a" * 40 + "b", "7", grader="regex", pattern=r"(a+)+$").reason == "pattern took too long"
    assert grade(r"\boxed{\frac{4}{2}}", "2").correct


@pytest.mark.parametrize(
    ("grader", "pattern", "says"),
    [
        ("maths", "", "there is no such grader; take one of math, exact, choice, regex"),
        ("no_such_module:f", "", "can't be imported (ModuleNotFoundError"),
        (f"{HERE}:no_such_function", "", "can't be imported (AttributeError"),
        (f"{HERE}:HERE", "", "is not a function"),
        ("regex", "", "has no pattern"),
        ("regex", "(", "is no regular expression"),
        ("math", "x", "only the grader `regex` takes one"),
    ],
)
def test_graders_that_could_not_grade_are_refused(grader: str, pattern: str, says: str) -> None:
    with pytest.raises(RpamError) as caught:
        check_grader(grader, pattern)
    assert says in str(caught.value)
