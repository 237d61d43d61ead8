"""`compare`: run folders and saved evaluations, on the same questions or not at all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from quant.evaluation import Asked, Evaluation, ModelRun, Settings
from quant.records import Record, write_records
from rpam_lite.cli import app
from rpam_lite.errors import RpamError


def rpam(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200"})


def refusal(*arguments: str | Path) -> str:
    result = rpam("compare", *arguments)
    assert isinstance(result.exception, RpamError), result.output
    return str(result.exception)


def answers(right: Sequence[bool], tokens: int, max_tokens: int = 100) -> list[Record]:
    """One record a question: which are right, and how long all are."""
    sampling = {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "seed": 1, "max_tokens": max_tokens}
    return [
        Record(f"{n}/0", str(n), 1, str(n), ok, "", tokens, 0, "none", "stop", "", sampling=sampling)
        for n, ok in enumerate(right, 1)
    ]


def run_folder(folder: Path, models: dict[str, list[Record]]) -> Path:
    """What the eval stage leaves; records in an order of their own."""
    rows: list[dict[str, Any]] = []
    (folder / "eval").mkdir(parents=True)
    for number, (name, records) in enumerate(models.items()):
        write_records(folder / "eval" / f"records-{number}.jsonl", records[::-1])
        kind = "merge" if name.startswith("Merge") else "parent"
        rows.append({"name": name, "kind": kind, "records": f"records-{number}.jsonl"})
    told = {"version": 2, "questions": len(records), "rows": rows}
    (folder / "eval/evaluation.json").write_text(json.dumps(told), encoding="utf-8")
    return folder


def saved(file: Path, models: dict[str, list[Record]], task: str = "sums") -> Path:
    asked = {task: Asked("", "", None, "math", "", False)}
    runs = tuple(ModelRun(name, name, {task: records}) for name, records in models.items())
    Evaluation(runs, asked, Settings()).save(file)
    return file


HALF = [n % 2 == 0 for n in range(40)]


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    one = run_folder(tmp_path / "one", {"Long": answers([True] * 40, 90), "Merge Q8_0": answers(HALF, 20)})
    other = run_folder(tmp_path / "other", {"Long": answers([True] * 40, 90), "Merge Q8_0": answers([True] * 40, 30)})
    return one, other


def test_merges_of_one_name_are_compared_in_pairs(two: tuple[Path, Path]) -> None:
    told = json.loads(rpam("compare", *two, "--json").stdout)
    assert [point["model"] for point in told["models"]] == ["one: Merge Q8_0", "other: Merge Q8_0"]
    (difference,) = told["differences"]
    assert (difference["model"], difference["against"]) == ("other: Merge Q8_0", "one: Merge Q8_0")
    value, low, high = difference["accuracy"]
    assert value == 0.5
    assert 0.3 < low < 0.5 < high < 0.7
    assert difference["tokens_ratio"] == [1.5, 1.5, 1.5]
    output = rpam("compare", *two).output
    assert "50.0 (35.0 to 65.0)" in output
    assert "1.50 (1.50 to 1.50)" in output


def test_models_are_chosen_by_name(two: tuple[Path, Path]) -> None:
    told = json.loads(rpam("compare", *two, "--model", "Long", "--json").stdout)
    assert [point["model"] for point in told["models"]] == ["one: Long", "other: Long"]
    assert "has no model Lung; it has Long, Merge Q8_0" in refusal(*two, "--model", "Lung")
    assert "--model Lung" in refusal(*two, "--model", "Long", "--model", "Lung")


def test_a_saved_evaluation_stands_beside_a_run(tmp_path: Path, two: tuple[Path, Path]) -> None:
    file = saved(tmp_path / "mine.json", {"a": answers(HALF, 10), "b": answers(HALF, 40)})
    told = json.loads(rpam("compare", two[0], file, "--json").stdout)
    pairs = [(d["model"], d["against"], d["tokens_ratio"][0]) for d in told["differences"]]
    assert pairs == [("mine: a", "one: Merge Q8_0", 0.5), ("mine: b", "one: Merge Q8_0", 2.0)]


def test_what_was_not_asked_alike_is_refused(tmp_path: Path, two: tuple[Path, Path]) -> None:
    one = two[0]
    longer = run_folder(tmp_path / "longer", {"Merge Q8_0": answers(HALF, 20, max_tokens=200)})
    assert "different sampling or limits of tokens" in refusal(one, longer)
    fewer = run_folder(tmp_path / "fewer", {"Merge Q8_0": answers(HALF[:9], 20)})
    assert "different questions" in refusal(one, fewer)
    other = [replace(record, answer="0") for record in answers(HALF, 20)]
    assert "different questions" in refusal(one, run_folder(tmp_path / "elsewhere", {"Merge Q8_0": other}))
    lenient = [replace(record, grader="another") for record in answers(HALF, 20)]
    assert "different graders" in refusal(one, saved(tmp_path / "lenient.json", {"a": lenient}))
    a, b = (saved(tmp_path / f"{name}.json", {"m": answers(HALF, 9)}, name) for name in ("sums", "words"))
    assert "sums was measured on sums, words on words" in refusal(a, b)


def test_what_was_not_measured_is_refused(tmp_path: Path, two: tuple[Path, Path]) -> None:
    one = two[0]
    assert "at least two" in refusal(one)
    assert "given twice" in refusal(one, one)
    (tmp_path / "empty").mkdir()
    assert "no run folder with measurements" in refusal(one, tmp_path / "empty")
    records = one / "eval/records-1.jsonl"
    lines = records.read_text(encoding="utf-8").splitlines(keepends=True)
    later = [line.replace('"key": "', '"key": "9') for line in lines]  # of questions that are asked no more
    records.write_text("".join([*lines, *later]), encoding="utf-8")
    assert rpam("compare", *two).exit_code == 0
    records.write_text("", encoding="utf-8")
    assert "holds 0 answers, the evaluation beside it 40 questions" in refusal(*two)
