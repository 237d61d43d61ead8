"""The label rule and what becomes of sampled answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quant.engines import Completion, Request, Sampling
from quant.tasks.questions import Question
from rpam_lite.errors import RpamError
from rpam_lite.patterns.label import label_questions, labelled, sample_parent
from rpam_lite.patterns.rule import pattern_label


@pytest.mark.parametrize(
    ("long", "short", "label"),
    [(0, 0, None), (8, 8, "short"), (8, 7, "long"), (1, 0, "long"), (0, 1, "short"), (3, 8, "short")],
)
def test_rule(long: int, short: int, label: str | None) -> None:
    assert pattern_label(long, short, 8) == label


@given(st.integers(1, 64).flatmap(lambda k: st.tuples(st.just(k), st.integers(0, k), st.integers(0, k))))
def test_the_selected_parent_was_right_at_least_once(counts: tuple[int, int, int]) -> None:
    k, long, short = counts
    label = pattern_label(long, short, k)
    if label is not None:
        assert {"long": long, "short": short}[label] > 0


class ScriptedEngine:
    """Answers with fixed texts; remembers what it was asked."""

    name, identity = "scripted", "scripted"

    def __init__(self, answers: list[str]) -> None:
        self.answers, self.asked = answers, list[Request]()

    def chat_prompt(self, question: str) -> tuple[int, ...]:
        return tuple(question.encode())

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        for request in requests:
            self.asked.append(request)
            text = self.answers[int(request.key.split("/")[1])].encode()
            yield Completion(request.key, tuple(text), tuple(bytes([b]) for b in text), "stop", len(text) + 1)


QUESTIONS = [Question("1", "3 + 4?", "7", 1), Question("2", "3 + 5?", "8", 2)]


PROMPTS = {"1": (1,), "2": (2,)}


def sample(engine: ScriptedEngine, file: Path) -> list[dict[str, object]]:
    return sample_parent(engine, QUESTIONS, PROMPTS, 2, Sampling(0.6, 0.95, 20, 1), 50, file)


def test_counts_and_the_first_right_answer_are_kept(tmp_path: Path) -> None:
    long = sample(ScriptedEngine(["\\boxed{7}", "\\boxed{ 7}"]), tmp_path / "long.jsonl")
    short = sample(ScriptedEngine(["\\boxed{8}", "\\boxed{9}"]), tmp_path / "short.jsonl")
    rows = label_questions(QUESTIONS, PROMPTS, long, short, 2)
    assert [(r["correct_long"], r["correct_short"], r["label"]) for r in rows] == [(2, 0, "long"), (0, 1, "short")]
    chosen = labelled(rows)
    assert bytes(chosen[0].response_ids) == b"\\boxed{7}"
    assert bytes(chosen[1].response_ids) == b"\\boxed{8}"
    assert chosen[1].prompt_ids == (2,)


def test_samples_have_their_own_seeds_and_are_not_drawn_twice(tmp_path: Path) -> None:
    file = tmp_path / "long.jsonl"
    first = ScriptedEngine(["a", "b"])
    whole = sample(first, file)
    assert len({r.sampling.seed for r in first.asked}) == 4
    # An interruption: two whole lines and half of a third are left.
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    file.unlink()
    (tmp_path / "long.jsonl.partial").write_text("".join(lines[:2]) + lines[2][:20], encoding="utf-8")
    second = ScriptedEngine(["a", "b"])
    assert sample(second, file) == whole
    assert [r.key for r in second.asked] == ["2/0", "2/1"]
    assert [r.sampling.seed for r in second.asked] == [r.sampling.seed for r in first.asked[2:]]


def test_one_label_only_is_an_error_that_says_what_to_add() -> None:
    row = {"key": "1", "level": 1, "label": "short", "prompt_ids": [1], "response_ids": [2]}
    with pytest.raises(RpamError, match=r"labelled 'long'.*add harder questions"):
        labelled([row])
