"""The evaluation API: several models on the same questions, compared, saved, graded again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from quant import Sampling, evaluate, read_evaluation
from quant.comparison import compare_to_curve
from quant.engines import Completion, Request
from quant.evaluation import graded_again, joined
from quant.plot import frontier
from quant.records import read_records
from quant.tables import budget_table, console
from quant.tasks.questions import TaskFile
from rpam_lite.errors import RpamError

GREEDY = Sampling()


class Scripted:
    """Knows some sums; thinks about as many tokens as it is told."""

    opens_think = False

    def __init__(self, name: str, known: int, tokens: int, fail_after: int | None = None) -> None:
        self.name, self.identity = name, f"id-{name}"
        self.known, self.tokens, self.fail_after = known, tokens, fail_after
        self.asked: list[Request] = []

    def chat_prompt(self, question: str) -> tuple[int, ...]:
        return tuple(question.encode())

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        for request in requests:
            if self.fail_after == len(self.asked):
                raise RpamError("the engine broke.")
            self.asked.append(request)
            number = int(request.question.split()[2])
            answer = number + 1 if number < self.known else 0
            pieces = ("<think>", *["so "] * self.tokens, "</think>", f"\\boxed{{{answer}}}")
            yield Completion(
                request.key, (1,) * len(pieces), tuple(p.encode() for p in pieces), "stop", len(pieces) + 1, 0.5
            )

    def close(self) -> None:
        pass


@pytest.fixture
def task(tmp_path: Path) -> Path:
    rows = [{"question": f"What is {i} + 1?", "answer": str(i + 1), "level": 1 + i // 10} for i in range(20)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return tmp_path / "sums.jsonl"


def test_models_are_compared_on_the_same_questions(
    task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    models = [Scripted("good", 18, 30), Scripted("cheap", 10, 3)]
    result = evaluate(models, [task], samples=2, sampling=GREEDY, records=tmp_path / "records")
    comparison = result.compare()
    (difference,) = comparison.differences
    assert (difference.model, difference.other, difference.task) == ("good", "cheap", "sums")
    assert difference.accuracy.value == pytest.approx(0.4)
    assert 0.15 < difference.accuracy.low < 0.4 < difference.accuracy.high < 0.65
    assert difference.tokens.value == pytest.approx(34 / 7)
    good, cheap = comparison.points
    assert (good.accuracy.value, good.tokens.value) == (0.9, 34)
    assert (cheap.accuracy.value, cheap.tokens.value) == (0.5, 7)
    assert [p.model for p in frontier(comparison.points)] == ["cheap", "good"]
    result.table()
    console().print(budget_table(result, [7, 34]))
    printed = capsys.readouterr().out
    assert "0.0 (0.0 to 0.0)" in printed  # nothing of the good one within 7 tokens
    assert all(run.speed["sums"] > 0 for run in result.runs)
    assert "90.0 (" in printed
    assert "+40.0 (" in printed
    comparison.plot(tmp_path / "pareto.png")
    assert (tmp_path / "pareto.png").read_bytes().startswith(b"\x89PNG")
    comparison.plot(tmp_path / "pareto.svg")
    assert "<svg" in (tmp_path / "pareto.svg").read_text(encoding="utf-8")


def test_nothing_is_generated_twice(task: Path, tmp_path: Path) -> None:
    records = tmp_path / "records"
    broken = Scripted("model", 18, 3, fail_after=7)
    with pytest.raises(RpamError, match="the engine broke"):
        evaluate(broken, [task], sampling=GREEDY, records=records)
    model = Scripted("model", 18, 3)
    whole = evaluate(model, [task], sampling=GREEDY, records=records)
    assert len(model.asked) == 13
    more = evaluate(model, [task], samples=3, sampling=GREEDY, records=records)
    assert len(model.asked) == 13 + 40
    assert len({r.sampling.seed for r in model.asked}) == 53
    fewer = evaluate(model, [task], sampling=GREEDY, records=records, limit=5)
    assert len(model.asked) == 53
    assert [len(e.runs[0].records["sums"]) for e in (whole, more, fewer)] == [20, 60, 5]
    # Another way of sampling, or another model, is another file.
    evaluate(model, [task], sampling=Sampling(0.7), records=records, limit=5)
    evaluate(Scripted("other", 18, 3), [task], sampling=GREEDY, records=records, limit=5)
    assert len(model.asked) == 58
    assert len(list(records.glob("*/*.jsonl"))) == 3


def test_a_run_goes_on_on_another_engine(task: Path, tmp_path: Path) -> None:
    first, second = Scripted("gguf", 18, 3, fail_after=7), Scripted("server", 18, 3)
    with pytest.raises(RpamError):
        evaluate(first, [task], sampling=GREEDY, records=tmp_path / "records", filed_as="merge")
    result = evaluate(second, [task], sampling=GREEDY, records=tmp_path / "records", filed_as="merge")
    engines = [record.engine for record in result.runs[0].records["sums"]]
    assert engines == ["id-gguf"] * 7 + ["id-server"] * 13


def test_saved_and_read_it_is_the_same(task: Path, tmp_path: Path) -> None:
    result = evaluate(Scripted("a", 18, 3), [task], sampling=GREEDY, records=tmp_path / "records")
    result.save(tmp_path / "evaluation.json")
    assert read_evaluation(tmp_path / "evaluation.json") == result
    other = evaluate(Scripted("b", 10, 3), [task], sampling=GREEDY, records=tmp_path / "records")
    assert [d.other for d in read_evaluation(tmp_path / "evaluation.json").compare(other).differences] == ["b"]
    less = evaluate(Scripted("c", 10, 3), [task], sampling=GREEDY, records=tmp_path / "records", limit=5)
    for mixed in (lambda: result.compare(less), lambda: joined([result, less])):
        with pytest.raises(RpamError, match="can't compare: one was asked"):
            mixed()
    with pytest.raises(RpamError, match="two models are named 'a'"):
        joined([result, result])
    saved = json.loads((tmp_path / "evaluation.json").read_text(encoding="utf-8"))
    next(iter(saved["runs"][0]["records"].values()))[0]["version"] = 3
    (tmp_path / "evaluation.json").write_text(json.dumps(saved), encoding="utf-8")
    with pytest.raises(RpamError, match="its records are of version 3, this release reads"):
        read_evaluation(tmp_path / "evaluation.json")
    (tmp_path / "evaluation.json").write_text("{}", encoding="utf-8")
    with pytest.raises(RpamError, match="is no evaluation of version 1"):
        read_evaluation(tmp_path / "evaluation.json")


def with_answers(task: Path, answers: dict[int, object]) -> None:
    rows = [json.loads(line) for line in task.read_text(encoding="utf-8").splitlines()]
    for number, answer in answers.items():
        rows[number]["answer"] = answer
    task.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_verdicts_follow_gold_answers_and_graders_without_generating(task: Path, tmp_path: Path) -> None:
    model, records = Scripted("a", 18, 3), tmp_path / "records"

    def verdicts(file: Path | TaskFile) -> list[bool]:
        result = evaluate(model, [file], sampling=GREEDY, records=records)
        return [record.correct for record in result.runs[0].records["sums"]]

    assert verdicts(task) == [True] * 18 + [False] * 2
    with_answers(task, {0: "7"})
    assert verdicts(task) == [False] + [True] * 17 + [False] * 2
    with_answers(task, {0: "1"})
    assert verdicts(TaskFile(task, grader="regex", pattern="(never)")) == [False] * 20
    assert verdicts(task) == [True] * 18 + [False] * 2
    assert len(model.asked) == 20


def test_a_saved_evaluation_is_graded_again_by_its_own_grader(task: Path, tmp_path: Path) -> None:
    model = Scripted("a", 18, 3)
    strict = TaskFile(task, grader="regex", pattern=r"boxed\{(1\d)\}")
    result = evaluate(model, [strict], sampling=GREEDY, records=tmp_path / "records")
    assert sum(r.correct for r in result.runs[0].records["sums"]) == 9
    wrong = [replace(r, correct=not r.correct) for r in result.runs[0].records["sums"]]
    spoilt = replace(result, runs=(replace(result.runs[0], records={"sums": wrong}),))
    spoilt.save(tmp_path / "evaluation.json")
    task.unlink()
    again = graded_again(read_evaluation(tmp_path / "evaluation.json"))
    assert [r.correct for r in again.runs[0].records["sums"]] == [r.correct for r in result.runs[0].records["sums"]]


def test_a_changed_question_alone_is_asked_again(task: Path, tmp_path: Path) -> None:
    model = Scripted("a", 18, 3)
    evaluate(model, [task], sampling=GREEDY, records=tmp_path / "records")
    text = task.read_text(encoding="utf-8").replace("What is 3 + 1?", "What is 3 + 1, please?")
    task.write_text(text + json.dumps({"question": "What is 20 + 1?", "answer": 21}) + "\n", encoding="utf-8")
    result = evaluate(model, [task], sampling=GREEDY, records=tmp_path / "records")
    assert [r.key for r in model.asked[20:]] == ["4/0", "21/0"]
    assert len(result.runs[0].records["sums"]) == 21


def test_a_damaged_line_is_asked_again_and_nothing_else(task: Path, tmp_path: Path) -> None:
    model = Scripted("a", 18, 3)
    evaluate(model, [task], sampling=GREEDY, records=tmp_path / "records")
    (file,) = (tmp_path / "records").glob("*/*.jsonl")
    lines = file.read_text(encoding="utf-8").splitlines()
    lines[2] = lines[2][:50]
    file.write_text("\n".join(lines)[:-30], encoding="utf-8")
    evaluate(model, [task], sampling=GREEDY, records=tmp_path / "records")
    assert [r.key for r in model.asked[20:]] == ["3/0", "20/0"]
    assert len(read_records(file)) == 20


def test_two_runs_do_not_write_one_file(task: Path, tmp_path: Path) -> None:
    class Nested(Scripted):
        def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
            with pytest.raises(RpamError, match=r"sums-\w+\.jsonl: another run works there; wait"):
                evaluate(Scripted("a", 18, 3), [task], sampling=GREEDY, records=tmp_path / "records")
            yield from super().generate(requests)

    result = evaluate(Nested("a", 18, 3), [task], sampling=GREEDY, records=tmp_path / "records")
    assert len(result.runs[0].records["sums"]) == 20


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"samples": 0}, "samples=0: must be at least 1"),
        ({"limit": -1}, "limit=-1: must be at least 1"),
        ({"max_tokens": 0}, "max_tokens=0: must be at least 1"),
        ({"filed_as": "../x"}, "filed_as='../x': must be a plain name"),
        ({"tasks": []}, "give at least one of each"),
        ({"tasks": "sums.jsonl"}, "as lists; tasks are 'sums.jsonl'"),
    ],
)
def test_what_makes_no_sense_is_refused(task: Path, tmp_path: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(RpamError, match=message):
        evaluate(Scripted("a", 1, 1), **{"tasks": [task], "records": tmp_path / "records"} | given)


def test_against_interpolation_at_equal_tokens(task: Path, tmp_path: Path) -> None:
    models = [Scripted("merge", 16, 10), Scripted("short", 4, 0), Scripted("middle", 10, 10), Scripted("long", 20, 40)]
    result = evaluate(models, [task], sampling=GREEDY, records=tmp_path / "records")
    merge, *curve = result.runs
    gain = compare_to_curve(merge, curve, result.settings)["sums"]
    assert result.compare(curve=["short", "middle", "long"]).above == {"merge": {"sums": gain}}
    with pytest.raises(RpamError, match="large: no model of that name was measured; there are merge, short"):
        result.compare(curve=["short", "large"])
    assert (gain.accuracy, gain.curve_accuracy) == pytest.approx((0.8, 0.5))
    assert gain.low < 0.3 < gain.high


def test_frame(task: Path, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    result = evaluate(Scripted("a", 18, 3), [task], samples=2, sampling=GREEDY, records=tmp_path / "records")
    frame = result.to_frame()
    assert isinstance(frame, pandas.DataFrame)
    assert frame.groupby("level")["correct"].mean().to_dict() == {1: 1.0, 2: 0.8}


def test_one_name_for_several_models(task: Path, tmp_path: Path) -> None:
    models = [Scripted("a", 1, 1), Scripted("b", 1, 1)]
    with pytest.raises(RpamError, match="filed_as='merge' goes with one model, not with 2"):
        evaluate(models, [task], records=tmp_path, filed_as="merge")
