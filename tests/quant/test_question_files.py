"""Tasks of a user's own files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from quant.tasks.catalog import TaskFile, load_tasks
from quant.tasks.questions import Question
from quant.tasks.task import Task
from rpam_lite.errors import RpamError


def one(*names: Any) -> Task:
    return load_tasks(names)[0]


def test_files_of_a_user(tmp_path: Path) -> None:
    table = tmp_path / "mine.csv"
    table.write_text('Frage,Loesung,Stufe\n"1, 2 oder 3?",B,2\n"zwei\nZeilen?",C,\n', encoding="utf-8-sig")
    task = one(TaskFile(table, "Frage", "Loesung", "Stufe", grader="choice", instruction="One letter."))
    assert task.questions == [
        Question("2", "1, 2 oder 3?\nOne letter.", "B", 2),
        Question("4", "zwei\nZeilen?\nOne letter.", "C", 0),
    ]
    assert (task.name, task.source) == ("mine", str(table))
    assert task.grade("Answer: B", task.questions[0]).correct
    lines = tmp_path / "lines.jsonl"
    lines.write_text('{"question": "q?", "answer": "22"}\n', encoding="utf-8")
    plain, patterned = one(str(lines)), one(TaskFile(lines, grader="regex", pattern=r"= (\d+)"))
    assert plain.grade(r"\boxed{22}", plain.questions[0]).correct
    assert patterned.grade("x = 22", patterned.questions[0]).path == "pattern"
    assert one(plain) is plain


def test_a_tolerance_is_read_from_both_forms(tmp_path: Path) -> None:
    table, lines = tmp_path / "t.csv", tmp_path / "l.jsonl"
    table.write_text("question,answer,tolerance\nx?,4.2,0.1\ny?,3,\n", encoding="utf-8")
    lines.write_text('{"question": "x?", "answer": "4.2", "tolerance": 0.1}\n', encoding="utf-8")
    assert [q.tolerance for q in one(table).questions] == [0.1, 0.0]
    assert [q.tolerance for q in one(lines).questions] == [0.1]
    task = one(table)
    assert task.grade(r"\boxed{4.3}", task.questions[0]).correct


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("question,answer\n", "holds no question; write a header"),
        ("", "holds no question; write a header"),
        ("q,answer\nx?,2\n", "line 2: `question` is None; it must be text (the fields are: q, answer)"),
        ("question,answer\nx?\n", "line 2: `answer` is None"),
        ("question,answer\nWell, x?,2\n", "line 2: has more fields than the header"),
        ('question,answer\n"x?,2\n', "is not valid CSV"),
        ("question,answer,tolerance\nx?,2,much\n", "line 2: `tolerance` is 'much'; it must be a number, 0 or more"),
        ("question,answer,level\nx?,2,hard\n", "line 2: `level` is 'hard'; it must be a whole number"),
        ("question,answer\nx?,2}{\n", "line 2: the answer '2}{' can't be graded"),
    ],
)
def test_a_broken_csv_is_named(tmp_path: Path, content: str, says: str) -> None:
    file = tmp_path / "q.csv"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(RpamError) as caught:
        load_tasks([file])
    assert says in str(caught.value)
    assert str(file) in str(caught.value)


def test_names_files_and_fields_that_do_not_fit(tmp_path: Path) -> None:
    file = tmp_path / "q.jsonl"
    file.write_text('{"question": "q?", "answer": "maybe"}\n', encoding="utf-8")
    for names, says in (
        (["gsm9k"], "task 'gsm9k': is neither a file of questions .* nor one of gsm8k, math500"),
        ([tmp_path / "none.csv"], "no such question file"),
        ([tmp_path], "can't be read"),
        ([file, file], "task q: is named twice"),
        ([TaskFile(file, grader="choice")], "give one letter from A to J"),
        ([TaskFile(file, level="hardness")], "line 1: has no field `hardness`"),
        ([TaskFile(file, grader="exakt")], "there is no such grader"),
    ):
        with pytest.raises(RpamError, match=says):
            load_tasks(names)
    with pytest.raises(RpamError, match="key '1' occurs 2 times"):
        Task("t", [Question("1", "a", "1"), Question("1", "b", "2")])
