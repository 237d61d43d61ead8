"""Adaptive sampling: exact where it says so, nearly always right where it does not, and never more than k."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import betabinom

from bench.labels import SAMPLES, replay, simulated
from quant.engines import Completion, Request, Sampling
from quant.tasks.questions import Question
from rpam_lite.patterns.adaptive import Drawn, draw_in_rounds, drawn, forecast, is_settled
from rpam_lite.patterns.rule import Rule, Score, rule_of
from rpam_lite.patterns.samples import Sampler

MAX_TOKENS = 200
RULES = [rule_of("strict"), rule_of("ada-r1"), rule_of("release"), rule_of("cost", 200.0)]


def test_doubt_is_the_beta_binomial_probability_of_another_label() -> None:
    """Short 7 of 8, Long 2 of 3, k = 12; long if Long's count is higher in the end."""
    ahead = forecast(rule_of("strict"), Drawn(3, 2), Drawn(8, 7), 12, MAX_TOKENS)
    long, short = betabinom(9, 3, 2), betabinom(4, 8, 2)
    wins = sum(long.pmf(i) * short.pmf(j) for i in range(10) for j in range(5) if 2 + i > 7 + j)
    assert ahead.label == "short"
    assert ahead.doubt == pytest.approx(wins, rel=1e-9)


def test_what_cannot_change_has_no_doubt_at_all() -> None:
    ahead = forecast(rule_of("strict"), Drawn(0, 0), Drawn(12, 12), 12, MAX_TOKENS)
    assert (ahead.label, ahead.doubt) == ("short", 0.0)
    assert forecast(rule_of("strict"), Drawn(11, 0), Drawn(12, 0), 12, MAX_TOKENS).doubt > 0


rows = st.lists(st.tuples(st.booleans(), st.integers(1, MAX_TOKENS)), min_size=6, max_size=6)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
@settings(max_examples=150, deadline=None)
@given(long=rows, short=rows, many=st.tuples(st.integers(0, 6), st.integers(0, 6)))
def test_without_doubt_no_continuation_changes_the_label(
    rule: Rule, long: list[tuple[bool, int]], short: list[tuple[bool, int]], many: tuple[int, int]
) -> None:
    def seen(answers: list[tuple[bool, int]], count: int) -> Drawn:
        return Drawn(count, sum(a for a, _ in answers[:count]), sum(t for _, t in answers[:count]))

    ahead = forecast(rule, seen(long, many[0]), seen(short, many[1]), 6, MAX_TOKENS)
    if ahead.doubt == 0:
        ends = [Score(seen(a, 6).right, seen(a, 6).tokens / 6) for a in (long, short)]
        assert rule.decide(ends[0], ends[1], 6) == ahead.label


@pytest.mark.parametrize(("rule", "most"), [(RULES[0], 0.6), (RULES[1], 0.6), (RULES[2], 0.7), (RULES[3], 0.7)])
def test_adaptive_labels_are_those_of_fixed_k_for_fewer_tokens(rule: Rule, most: float) -> None:
    stored = simulated(600, seed=7)

    def labels(found: Any) -> list[str | None]:
        return [
            forecast(rule, drawn(found["long"][key]), drawn(found["short"][key]), SAMPLES, 320).label
            for key in found["long"]
        ]

    def tokens(found: Any) -> int:
        return sum(row["tokens"] for parent in found.values() for drawn in parent.values() for row in drawn)

    fixed = labels(stored)
    assert labels(replay(stored, rule, 0.0)) == fixed
    adaptive = replay(stored, rule, 0.01)
    assert sum(a == b for a, b in zip(labels(adaptive), fixed, strict=True)) >= 0.99 * len(fixed)
    assert tokens(adaptive) <= most * tokens(stored)
    assert replay(stored, rule, None) == stored


def settled(long: Sequence[dict[str, Any]], short: Sequence[dict[str, Any]]) -> bool:
    seen = drawn(long), drawn(short)
    return is_settled(forecast(rule_of("strict"), *seen, 12, 50), *seen, 0.01)


def test_a_round_fills_the_engine_and_one_parent_is_done_before_the_other() -> None:
    asked: list[tuple[str, list[str]]] = []

    def draw(parent: str, keys: list[str]) -> list[dict[str, Any]]:
        asked.append((parent, keys))
        # Short is never right, Long always, but for question 0, which Short can do.
        return [{"correct": (parent == "long") != key.startswith("0/"), "tokens": 9} for key in keys]

    draws = {parent: partial(draw, parent) for parent in ("long", "short")}
    found = draw_in_rounds([str(i) for i in range(8)], 12, draws, settled, 32)
    parents = [parent for parent, _ in asked]
    assert parents == sorted(parents, reverse=True)
    assert all(len(keys) >= 28 for _, keys in asked)  # 7 questions of 4 samples each, or 8 of 4
    assert len(found["long"]["0"]) == 0
    assert 11 <= len(found["short"]["0"]) <= 12
    assert {len(found["long"][str(i)]) for i in range(1, 8)} == {4}


def test_nothing_stops_before_the_named_parent_was_right() -> None:
    """With much doubt allowed, Long may be the likelier label before it has answered at all."""
    ahead = forecast(rule_of("strict"), Drawn(0, 0), Drawn(12, 0), 12, MAX_TOKENS)
    assert (ahead.label, ahead.doubt) == ("long", pytest.approx(1 / 13))
    assert not is_settled(ahead, Drawn(0, 0), Drawn(12, 0), 0.5)
    assert is_settled(ahead, Drawn(1, 1), Drawn(12, 0), 0.5)


class CoinEngine:
    """Right or wrong by the seed of the request alone; interrupted after so many answers."""

    name = identity = "coin"

    def __init__(self, share: float, patience: int) -> None:
        self.share, self.patience, self.asked = share, patience, list[str]()

    def close(self) -> None:
        """Nothing to free."""

    def chat_prompt(self, question: str) -> tuple[int, ...]:
        return (1,)

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        for request in reversed(requests):
            if not self.patience:
                raise KeyboardInterrupt
            self.patience -= 1
            self.asked.append(request.key)
            right = random.Random(request.sampling.seed).random() < self.share
            yield Completion(request.key, (5,), (b"\\boxed{1}" if right else b"\\boxed{2}",), "stop", 9)


def test_an_interrupted_run_draws_what_an_uninterrupted_one_draws(tmp_path: Path) -> None:
    questions = [Question(str(i), f"{i}?", "1") for i in range(5)]
    prompts = {q.key: (1,) for q in questions}

    def run(folder: Path, patience: int) -> tuple[Any, list[str]]:
        engines = {"long": CoinEngine(0.8, patience), "short": CoinEngine(0.4, patience)}
        try:
            with ExitStack() as stack:
                draws = {
                    name: stack.enter_context(
                        Sampler(
                            partial(nullcontext, engine),
                            questions,
                            prompts,
                            Sampling(1.0),
                            50,
                            folder / f"{name}.jsonl",
                        )
                    ).draw
                    for name, engine in engines.items()
                }
                found = draw_in_rounds(list(prompts), 12, draws, settled, 4)
        except KeyboardInterrupt:
            found = None
        return found, [f"{name} {key}" for name, engine in engines.items() for key in engine.asked]

    whole, asked = run(tmp_path / "whole", 1000)
    assert len(asked) < 2 * 12 * len(questions)
    pieces: list[str] = []
    found = None
    while found is None:
        found, more = run(tmp_path / "pieces", 7)
        pieces += more
    assert found == whole
    assert sorted(pieces) == sorted(asked)
    for name in ("long.jsonl", "short.jsonl"):
        assert (tmp_path / "pieces" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
