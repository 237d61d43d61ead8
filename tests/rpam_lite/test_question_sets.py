"""Questions named by data set: drawn by seed, apart from what is measured, kept in the run folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from quant.tasks.benchmarks import Benchmark
from rpam_lite.errors import RpamError
from rpam_lite.pipeline.questions import with_kept, with_questions
from rpam_lite.preflight.questions import check_questions
from rpam_lite.recipe import Recipe, load_recipe

MEASURED = "A farmer has 3 fields with 14 sheep each and sells 5 of them. How many sheep are left?"
REWORDED = "A farmer has 3 fields with 14 sheep each and then sells 5 of them. How many sheep are left?"


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Local copies of three sets; what would be asked of the hub fails."""
    folder = tmp_path / "data"
    folder.mkdir()
    gsm8k = [{"question": f"What is {n} + {n}?", "answer": f"Add.\n#### {2 * n}"} for n in range(40)]
    for name, rows in {
        "gsm8k_train": [*gsm8k, {"question": REWORDED, "answer": "#### 37"}],
        "gsm8k_test": [
            {"question": MEASURED, "answer": "#### 37"},
            {"question": "What is 7 times 8?", "answer": "#### 56"},
        ],
        "math_train": [
            {"problem": "Find $x$ if $2x = 8$.", "level": "Level 2", "type": "Algebra", "solution": "$\\boxed{4}$"},
            {"problem": "Who?", "level": "Level 1", "type": "Algebra", "solution": "Nobody knows."},
            {"problem": "Half of one?", "level": "Level 3", "type": "Algebra", "solution": "$\\boxed{\\frac12}$"},
        ],
    }.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    monkeypatch.setenv("RPAM_DATA", str(folder))

    def download(benchmark: Benchmark, revision: str) -> None:
        raise RpamError(f"the hub was asked for {benchmark.name}.")

    monkeypatch.setattr("quant.tasks.catalog._download", download)
    return folder


def recipe(tmp_path: Path, label: Any, measured: Any, **more: Any) -> Recipe:
    raw = {
        "version": 1,
        "name": "x",
        "parents": {"long": "acme/long", "short": "acme/short"},
        "label": {"questions": label},
        "eval": {"questions": measured, **more.pop("eval", {})},
        **more,
    }
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    return load_recipe(tmp_path / "x.yaml")


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_sets_are_drawn_by_the_seed_and_more_begin_with_the_same(data: Path, tmp_path: Path) -> None:
    def drawn(size: Any, seed: int) -> list[str]:
        wanted = recipe(tmp_path, {"gsm8k:train": size}, "gsm8k", seed=seed)
        found = with_questions(wanted, tmp_path / f"{size}{seed}", tmp_path / f"{size}{seed}", print)
        return [row["question"] for row in rows(found.label.file)]

    few, more, other, every = drawn(5, 1), drawn(9, 1), drawn(5, 2), drawn("all", 1)
    assert more[:5] == few
    assert set(few) != set(other)
    assert (len(set(few)), len(set(more)), len(set(every))) == (5, 9, 40)
    assert few[0].endswith("put your final answer within \\boxed{}.")


def test_what_is_measured_is_passed_over_and_the_record_says_so(data: Path, tmp_path: Path) -> None:
    said: list[str] = []
    wanted = recipe(tmp_path, {"gsm8k:train": "all", "math:train": 2}, {"gsm8k": 1})
    found = with_questions(wanted, tmp_path / "kept", tmp_path / "kept", said.append)
    calibration = rows(found.label.file)
    # Of the measured set one question was drawn, but all of it counts as measured.
    assert not any("sheep" in row["question"] for row in calibration)
    assert [row["level"] for row in calibration[-2:]] in ([2, 3], [3, 2])
    assert not list(check_questions(found))
    record = json.loads((tmp_path / "kept/sets.json").read_text(encoding="utf-8"))
    gsm8k, math = record["sets"]["label"]
    assert (gsm8k["of"], gsm8k["drawn"], gsm8k["overlapping"]) == (41, 40, 1)
    assert (math["set"], math["drawn"], math["licence"]) == ("math-train", 2, "MIT")
    assert gsm8k["source"] == str(data / "gsm8k_train.jsonl")
    assert said[0].startswith("calibration.jsonl: 40 of 41 questions of gsm8k-train (")
    assert said[0].endswith("licence: MIT); passed over: 1 measured too")


def test_a_draw_is_kept_while_the_recipe_asks_for_it(data: Path, tmp_path: Path) -> None:
    def ask(size: int) -> list[str]:
        said: list[str] = []
        wanted = recipe(tmp_path, {"gsm8k:train": size}, "gsm8k")
        with_questions(wanted, tmp_path / "kept", tmp_path / "kept", said.append)
        return said

    wanted = recipe(tmp_path, {"gsm8k:train": 4}, "gsm8k")
    assert not with_kept(wanted, tmp_path / "kept").label.file.exists()
    assert len(ask(4)) == 2
    assert with_kept(wanted, tmp_path / "kept").label.file == tmp_path / "kept/calibration.jsonl"
    assert not with_kept(recipe(tmp_path, {"gsm8k:train": 5}, "gsm8k"), tmp_path / "kept").label.file.exists()
    (data / "gsm8k_train.jsonl").unlink()
    assert ask(4) == []
    # All that is missing is told at once.
    with pytest.raises(RpamError, match=r"asked for aime24\.\nthe hub was asked for gsm8k-train\.$"):
        with_questions(
            recipe(tmp_path, {"gsm8k:train": 5, "aime24": 1}, "gsm8k"), tmp_path / "kept", tmp_path / "kept", print
        )


def test_a_file_can_be_measured_beside_a_set(data: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text(json.dumps({"question": REWORDED, "answer": "37"}) + "\n", encoding="utf-8")
    wanted = recipe(tmp_path, "gsm8k:train", "mine.jsonl")
    found = with_questions(wanted, tmp_path / "kept", tmp_path / "kept", print)
    assert len(rows(found.label.file)) == 40
    assert found.eval.file == tmp_path / "mine.jsonl"
    assert not list(check_questions(found))
    plain = recipe(tmp_path, "mine.jsonl", "mine.jsonl")
    assert with_questions(plain, tmp_path / "none", tmp_path / "none", print) is plain


def test_too_few_and_nothing_drawn_are_said_in_one_sentence(data: Path, tmp_path: Path) -> None:
    wanted = recipe(tmp_path, {"gsm8k:train": 41}, "gsm8k")
    with pytest.raises(RpamError, match=r"41 questions are wanted of 41, of which 1 are measured too .*40 or fewer"):
        with_questions(wanted, tmp_path / "kept", tmp_path / "kept", print)
    with pytest.raises(RpamError, match=r"Nothing has been drawn of gsm8k-train yet"):
        _ = wanted.label.file


@pytest.mark.parametrize(
    ("label", "measured", "more", "says"),
    [
        ({"gsm9k": 3}, "e.jsonl", {}, "there is no data set 'gsm9k'; known are gsm8k, "),
        ({"gsm8k:train": 0}, "e.jsonl", {}, "gsm8k:train takes a number of questions, or `all`"),
        ("gpqa", "e.jsonl", {}, "gpqa is graded by `choice`; set `grader: choice`"),
        ("q.jsonl", "gpqa", {}, "gpqa is graded by `choice`; set `grader: choice`"),
        ("q.jsonl", "gsm8k", {"instruction": "Be brief."}, "instruction: data sets bring their own"),
    ],
)
def test_what_can_not_be_drawn_is_refused_by_the_schema(
    tmp_path: Path, label: Any, measured: Any, more: dict[str, str], says: str
) -> None:
    with pytest.raises(RpamError) as caught:
        recipe(tmp_path, label, measured, eval=more)
    assert says in str(caught.value)


def test_a_set_keeps_its_revision_and_a_file_is_no_set(tmp_path: Path) -> None:
    told = recipe(tmp_path, {"GSM8K-train@abc": 3}, "gsm8k.jsonl")
    assert told.label.questions == {"gsm8k-train@abc": 3}
    assert told.eval.questions == tmp_path / "gsm8k.jsonl"
    assert recipe(tmp_path, "q", "MATH-500").label.questions == tmp_path / "q"
