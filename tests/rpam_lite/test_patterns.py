"""The label rules, what becomes of sampled answers, and which of them the fit gets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quant.engines import Completion, Engine, Request, Sampling
from quant.tasks.questions import Question
from rpam_lite.errors import RpamError
from rpam_lite.patterns.label import LabelledQuestion, label_questions, labelled
from rpam_lite.patterns.rule import RuleName, Score, rule_of
from rpam_lite.patterns.samples import Sampler
from rpam_lite.streaming.calibration import choose_questions


@pytest.mark.parametrize(
    ("long", "short", "label"),
    [(0, 0, None), (8, 8, "short"), (8, 7, "long"), (1, 0, "long"), (0, 1, "short"), (3, 8, "short")],
)
def test_strict_reads_counts_alone(long: int, short: int, label: str | None) -> None:
    rule = rule_of("strict")
    for tokens in ((900.0, 10.0), (10.0, 900.0)):
        assert rule.decide(Score(long, tokens[0]), Score(short, tokens[1]), 8) == label


@pytest.mark.parametrize("name", ["strict", "cost"])
@given(st.data())
def test_the_selected_parent_was_right_at_least_once(name: RuleName, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, 64))
    scores = [Score(data.draw(st.integers(0, k)), data.draw(st.floats(1, 5000))) for _ in range(2)]
    label = rule_of(name, data.draw(st.floats(0, 100))).decide(scores[0], scores[1], k)
    if label is not None:
        assert dict(zip(("long", "short"), scores, strict=True))[label].right > 0


def test_ada_r1_drops_nothing() -> None:
    decide = rule_of("ada-r1").decide
    assert [decide(Score(*counts), Score(0), 12) for counts in ((0, 9.0), (1, 9.0))] == ["short", "long"]


def released_gain(long: Score, short: Score, k: int) -> float:
    """The formula as method.md states it."""
    relative = (long.right - short.right) / k - 1 / (2 * k)
    longer = (long.tokens - short.tokens) / short.tokens
    return relative / longer if relative > 0 else relative * longer / 10


@given(st.integers(0, 12), st.integers(0, 12), st.floats(1, 9999), st.floats(1, 9999))
def test_release_is_the_sign_of_its_gain(right_long: int, right_short: int, tokens: float, other: float) -> None:
    long, short = Score(right_long, tokens), Score(right_short, other)
    label = rule_of("release").decide(long, short, 12)
    if right_long == right_short == 0:
        assert label is None
    elif abs(tokens - other) > 1e-3:
        assert label == ("long" if released_gain(long, short, 12) > 0 else "short")


def test_release_turns_a_shorter_long_parent_round_and_strict_does_not() -> None:
    better_and_shorter = Score(12, 50.0), Score(3, 80.0), 12
    assert rule_of("release").decide(*better_and_shorter) == "short"
    assert rule_of("strict").decide(*better_and_shorter) == "long"


def test_price_is_the_dial_between_better_and_cheaper() -> None:
    """Long is 50 points better for 1000 tokens more: worth it below 50 points per 1000 tokens."""
    scores = Score(12, 1200.0), Score(6, 200.0), 12
    labels = [rule_of("cost", price).decide(*scores) for price in (0.0, 49.0, 50.0, 51.0)]
    assert labels == ["long", "long", "short", "short"]
    # A shorter Long parent that is as good wins; what costs more than it is worth and is never right is dropped.
    assert rule_of("cost", 1.0).decide(Score(6, 100.0), Score(6, 200.0), 12) == "long"
    assert rule_of("cost", 99.0).decide(Score(1, 1200.0), Score(0, 200.0), 12) is None


class ScriptedEngine:
    """Answers with fixed texts; remembers what it was asked."""

    name, identity = "scripted", "scripted"

    def __init__(self, answers: list[str]) -> None:
        self.answers, self.asked, self.opened = answers, list[Request](), 0

    def open(self) -> AbstractContextManager[Engine]:
        self.opened += 1
        return nullcontext(self)

    def close(self) -> None:
        """Nothing to free."""

    def chat_prompt(self, question: str) -> tuple[int, ...]:
        return tuple(question.encode())

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        for request in requests:
            self.asked.append(request)
            text = self.answers[int(request.key.split("/")[1])].encode()
            yield Completion(request.key, tuple(text), tuple(bytes([b]) for b in text), "stop", len(text) + 1)


QUESTIONS = [Question("1", "3 + 4?", "7", 1), Question("2", "3 + 5?", "8", 2)]
PROMPTS = {"1": (1,), "2": (2,)}
KEYS = ["1/0", "1/1", "2/0", "2/1"]


def sample(
    engine: ScriptedEngine, file: Path, questions: Sequence[Question] = QUESTIONS, **changes: Any
) -> dict[str, list[dict[str, Any]]]:
    prompts = changes.pop("prompts", PROMPTS)
    with Sampler(engine.open, questions, prompts, Sampling(0.6, 0.95, 20, 1), 50, file, **changes) as sampler:
        rows = sampler.draw(KEYS)
    return {key: [row for row in rows if row["question"] == key] for key in PROMPTS}


def test_counts_and_the_first_right_answer_are_kept(tmp_path: Path) -> None:
    found = {
        "long": sample(ScriptedEngine(["\\boxed{7}", "\\boxed{ 7}"]), tmp_path / "long.jsonl"),
        "short": sample(ScriptedEngine(["\\boxed{8}", "\\boxed{9}"]), tmp_path / "short.jsonl"),
    }
    rows = label_questions(QUESTIONS, PROMPTS, found, rule_of("strict"), 2, 50)
    assert [(r["correct_long"], r["correct_short"], r["label"]) for r in rows] == [(2, 0, "long"), (0, 1, "short")]
    assert [(r["samples_long"], r["skipped_long"], r["doubt"]) for r in rows] == [(2, [], 0.0)] * 2
    chosen = labelled(rows)
    assert bytes(chosen[0].response_ids) == b"\\boxed{7}"
    assert bytes(chosen[1].response_ids) == b"\\boxed{8}"
    assert chosen[1].prompt_ids == (2,)


def test_a_parent_that_was_never_right_gives_its_first_answer(tmp_path: Path) -> None:
    wrong = sample(ScriptedEngine(["\\boxed{0}", "\\boxed{1}"]), tmp_path / "wrong.jsonl")
    row = label_questions(QUESTIONS, PROMPTS, {"long": wrong, "short": wrong}, rule_of("ada-r1"), 2, 50)[0]
    assert (row["label"], bytes(row["response_short"])) == ("short", b"\\boxed{0}")


def test_samples_have_their_own_seeds_and_are_not_drawn_twice(tmp_path: Path) -> None:
    file = tmp_path / "long.jsonl"
    first = ScriptedEngine(["a", "b"])
    whole = sample(first, file)
    assert len({r.sampling.seed for r in first.asked}) == 4
    before = file.read_bytes()
    # An interruption: two whole lines and half of a third are left.
    lines = before.splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:2]) + lines[2][:20])
    second = ScriptedEngine(["a", "b"])
    assert sample(second, file) == whole
    assert file.read_bytes() == before
    assert [r.key for r in second.asked] == ["2/0", "2/1"]
    assert [r.sampling.seed for r in second.asked] == [r.sampling.seed for r in first.asked[2:]]
    third = ScriptedEngine([])
    assert sample(third, file) == whole
    assert third.opened == 0


def test_a_mended_gold_answer_is_graded_again_and_another_prompt_is_asked_again(tmp_path: Path) -> None:
    file = tmp_path / "long.jsonl"
    first = sample(ScriptedEngine(["\\boxed{7}", "\\boxed{9}"]), file)
    mended = [Question("1", "3 + 4?", "9", 1), QUESTIONS[1]]
    silent = ScriptedEngine([])
    assert [r["correct"] for r in sample(silent, file, mended)["1"]] == [False, True]
    assert [r["correct"] for r in first["1"]] == [True, False]
    assert silent.opened == 0
    other = ScriptedEngine(["c", "d"])
    changed = sample(other, file, prompts={"1": (1,), "2": (3,)})
    assert [r.key for r in other.asked] == ["2/0", "2/1"]
    assert [r["text"] for r in changed["2"]] == ["c", "d"]
    # What was asked before is still there.
    assert sample(ScriptedEngine([]), file) == first


def test_an_engine_without_token_ids_gets_them_from_its_text(tmp_path: Path) -> None:
    class Server(ScriptedEngine):
        def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
            for completion in super().generate(requests):
                yield Completion(completion.key, (), completion.pieces, "stop", completion.generated)

    encode: Callable[[str], tuple[int, ...]] = lambda text: tuple(ord(c) + 1 for c in text)  # noqa: E731
    found = sample(Server(["a", "b"]), tmp_path / "s.jsonl", encode=encode)
    assert found["1"][0]["token_ids"] == [98]


def test_one_label_only_is_an_error_that_says_what_to_add() -> None:
    row = {"key": "1", "level": 1, "label": "short", "prompt_ids": [1], "response_short": [2]}
    with pytest.raises(RpamError, match=r"labelled 'long'.*add harder questions"):
        labelled([row])


def questions_of(levels: dict[int, int], label: Any) -> list[LabelledQuestion]:
    return [
        LabelledQuestion(f"{label}-{level}-{i}", level, label, (1,), (2,))
        for level, count in levels.items()
        for i in range(count)
    ]


def test_each_class_is_chosen_evenly_over_its_levels() -> None:
    questions = questions_of({1: 40, 2: 3, 3: 40}, "short") + questions_of({3: 9, 4: 50}, "long")
    chosen = choose_questions(questions, 14, seed=1)
    counts = Counter((q.label, q.level) for q in chosen)
    # Level 2 gives all it has and the other two share the rest, one having a turn more or not.
    assert counts["short", 2] == 3
    assert {counts["short", 1], counts["short", 3]} == {5, 6}
    assert (counts["long", 3], counts["long", 4]) == (7, 7)
    assert [questions.index(q) for q in chosen] == sorted(questions.index(q) for q in chosen)
    assert chosen == choose_questions(questions, 14, seed=1)
    assert {q.key for q in chosen} != {q.key for q in choose_questions(questions, 14, seed=2)}
    assert len(choose_questions(questions, 1000, seed=1)) == len(questions)


def test_a_turn_that_does_not_go_round_favours_no_level() -> None:
    questions = questions_of(dict.fromkeys(range(1, 5), 5), "short")
    first = Counter(choose_questions(questions, 1, seed)[0].level for seed in range(200))
    assert set(first) == {1, 2, 3, 4}
    assert min(first.values()) > 25


def test_where_no_question_has_a_label_the_advice_is_another() -> None:
    with pytest.raises(RpamError, match="no question has a label, since neither parent was right often enough"):
        labelled([{"label": None}])
