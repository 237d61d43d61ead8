"""Question files: one clear error for each broken line."""

from __future__ import annotations

from pathlib import Path

import pytest

from quant.tasks.questions import Question, load_questions
from rpam_lite.errors import RpamError

GOOD = '{"question": "1 + 1?", "answer": "2", "level": 3}\n'


def test_lines_become_questions(tmp_path: Path) -> None:
    file = tmp_path / "q.jsonl"
    file.write_text(GOOD + "\n" + '{"question": "x?", "answer": "\\\\frac{1}{2}"}\n', encoding="utf-8")
    assert load_questions(file) == [Question("1", "1 + 1?", "2", 3), Question("3", "x?", "\\frac{1}{2}", 0)]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{broken", "line 2: is not valid JSON"),
        ("[1]", "line 2: is not a JSON object"),
        ('{"answer": "2"}', "line 2: `question` is None"),
        ('{"question": "x?", "answer": [2]}', "line 2: `answer` is [2]"),
        ('{"question": "x?", "answer": " "}', "line 2: `answer` is ' '"),
        ('{"question": "x?", "answer": "2", "level": "hard"}', "line 2: `level` is 'hard'"),
        ('{"question": "x?", "answer": "2}{"}', "line 2: the answer '2}{' can't be graded"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, line: str, says: str) -> None:
    file = tmp_path / "q.jsonl"
    file.write_text(GOOD + line + "\n", encoding="utf-8")
    with pytest.raises(RpamError) as caught:
        load_questions(file)
    assert says in str(caught.value)
    assert str(file) in str(caught.value)


def test_missing_empty_and_wrongly_encoded_files(tmp_path: Path) -> None:
    with pytest.raises(RpamError, match="no such question file"):
        load_questions(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n", encoding="utf-8")
    with pytest.raises(RpamError, match="holds no question"):
        load_questions(tmp_path / "empty.jsonl")
    (tmp_path / "latin.jsonl").write_bytes('{"question": "é"}'.encode("latin-1"))
    with pytest.raises(RpamError, match="not UTF-8"):
        load_questions(tmp_path / "latin.jsonl")
