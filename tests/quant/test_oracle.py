"""The oracle of two models: no choice between them beats it, and it can be compared like any run."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quant.comparison import compare_runs
from quant.evaluation import ModelRun, Settings
from quant.measures import by_question, require_same_questions
from quant.records import Record
from quant.siblings import oracle, oracle_run
from rpam_lite.errors import RpamError


def record_of(question: int, sample: int, correct: bool, tokens: int, text: str = "") -> Record:
    return Record(f"{question}/{sample}", str(question), 1, "", correct, "", tokens, 0, "none", "stop", text)


@st.composite
def two_models(draw: st.DrawFn) -> tuple[list[Record], list[Record]]:
    questions, samples = draw(st.integers(1, 6)), draw(st.integers(1, 3))

    def model() -> list[Record]:
        return [
            record_of(q, s, draw(st.booleans()), draw(st.integers(1, 50)))
            for q in range(questions)
            for s in range(samples)
        ]

    return model(), model()


@given(two_models())
def test_the_oracle_is_never_below_a_parent(models: tuple[list[Record], list[Record]]) -> None:
    best = by_question(oracle(*models))
    for parent in map(by_question, models):
        require_same_questions(best, parent)
        assert (best.correct.mean(1) >= parent.correct.mean(1)).all()
        equal = best.correct.mean(1) == parent.correct.mean(1)
        assert (best.tokens.mean(1)[equal] <= parent.tokens.mean(1)[equal]).all()
    assert best.samples == by_question(models[0]).samples


def test_the_oracle_takes_accuracy_first_then_tokens() -> None:
    one = [record_of(0, 0, True, 90, "one"), record_of(1, 0, True, 90, "one"), record_of(2, 0, False, 5, "one")]
    other = [record_of(0, 0, False, 5, "other"), record_of(1, 0, True, 5, "other"), record_of(2, 0, False, 5, "other")]
    assert [r.text for r in oracle(one, other)] == ["one", "other", "one"]
    with pytest.raises(RpamError, match="one model answered 3 questions and another 2"):
        oracle(one, other[:2])


def test_the_oracle_of_two_runs_is_a_run_that_can_be_compared() -> None:
    one = ModelRun("long", "1", {"sums": [record_of(0, 0, True, 90), record_of(1, 0, True, 80)]})
    other = ModelRun("short", "2", {"sums": [record_of(0, 0, True, 10), record_of(1, 0, False, 10)]})
    best = oracle_run(one, other)
    (point,) = compare_runs([best], [], Settings()).points
    assert (point.model, point.task, point.accuracy.value, point.tokens.value) == ("oracle", "sums", 1.0, 45.0)
    with pytest.raises(RpamError, match=r"long answered the tasks \['sums'\] and other \['products'\]"):
        oracle_run(one, ModelRun("other", "3", {"products": other.records["sums"]}))
