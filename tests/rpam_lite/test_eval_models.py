"""`rpam eval MODEL... --tasks`: how answers are graded there."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from quant.engines import Completion, Request
from rpam_lite.cli import app


class Speaker:
    """Gives the right answer in words, without a box."""

    name, identity, opens_think = "speaker", "id-speaker", False

    def chat_prompt(self, question: str) -> tuple[int, ...]:
        return tuple(question.encode())

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        for request in requests:
            pieces = (b"The answer ", b"is 7.")
            yield Completion(request.key, (1, 2), pieces, "stop", 3, 0.1)

    def close(self) -> None:
        pass


@pytest.mark.parametrize(("more", "right"), [((), True), (("--strict",), False)])
def test_strict_takes_boxed_answers_only(
    more: tuple[str, ...], right: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.gguf").touch()
    (tmp_path / "sums.jsonl").write_text(json.dumps({"question": "3 + 4?", "answer": "7"}) + "\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)

    def opened(name: str, **settings: Any) -> Speaker:
        return Speaker()

    monkeypatch.setattr("quant.load", opened)
    result = CliRunner().invoke(
        app, ["eval", "model.gguf", "--tasks", "sums.jsonl", "--temperature", "0", "--save", "saved.json", *more]
    )
    assert result.exit_code == 0, result.output
    told = json.loads((tmp_path / "saved.json").read_text(encoding="utf-8"))
    (record,) = told["runs"][0]["records"]["sums"]
    assert record["correct"] is right


def test_strict_is_refused_where_it_would_do_nothing(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").touch()
    (tmp_path / "sums.jsonl").write_text(json.dumps({"question": "3 + 4?", "answer": "7"}) + "\n", encoding="utf-8")
    told = [
        "eval",
        str(tmp_path / "model.gguf"),
        "--tasks",
        str(tmp_path / "sums.jsonl"),
        "--grader",
        "exact",
        "--strict",
    ]
    refused = CliRunner().invoke(app, told).exception
    assert str(refused) == "--strict: does nothing, no task has the grader `math`; leave it out."
