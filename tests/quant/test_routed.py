"""Routing: each question goes to the engine that the probe chooses, and the answers are graded as anyone's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from quant.asking import answer_questions
from quant.engines import Engine, Request
from quant.engines.llama_cpp import LlamaCppEngine
from quant.records import to_record
from quant.siblings import CarEngine, RoutedEngine, Way, empty_think, fit_probe, last_hidden_states
from quant.tasks.questions import Question
from rpam_lite.errors import RpamError
from tests.quant.scripted import GATE, Scripted, probe_of, states_of


def test_routing_sends_each_request_its_way() -> None:
    long, short = Scripted("long"), Scripted("short")
    prompts = {(1,): 3.0, (2,): -3.0, (3,): 0.5}
    asked: list[Any] = []

    def states(wanted: Sequence[tuple[int, ...]]) -> Any:
        asked.append(list(wanted))
        return states_of(prompts)(wanted)

    engine = RoutedEngine(Way(long), Way(short, (8, 9)), probe_of(1.0), states)
    requests = [Request(f"{p[0]}/{i}", p, 10) for p in prompts for i in range(2)]
    found = {c.key: c for c in engine.generate(requests)}
    assert found.keys() == {r.key for r in requests}
    assert [r.prompt for r in long.asked] == [(2,), (2,)]
    assert [r.prompt for r in short.asked] == [(1, 8, 9), (1, 8, 9), (3, 8, 9), (3, 8, 9)]
    assert asked == [[(1,), (2,), (3,)]]  # samples of one question are read once
    assert all(c.generated == 4 and c.seconds > 1 for c in found.values())  # choosing and the suffix generate nothing
    assert RoutedEngine(Way(long), Way(short), probe_of(1.0), states, 0.9).choose(list(prompts)) == [
        "short",
        "long",
        "long",
    ]
    assert list(engine.generate([])) == []


def test_an_engine_may_make_its_own_prompt() -> None:
    long, short = Scripted("long"), Scripted("other")
    engine = RoutedEngine(Way(long), Way(short, (9,), own_prompt=True), probe_of(0.0, 5.0), states_of({(4, 63): 0.0}))
    list(engine.generate([Request("a", engine.chat_prompt("?"), 10, question="?")]))
    assert [r.prompt for r in short.asked] == [(5, 63, 9)]
    with pytest.raises(RpamError, match="request 'b': carries no question for other to make its own prompt of"):
        list(engine.generate([Request("b", (4, 63), 10)]))


def test_identity_follows_what_decides() -> None:
    long, short = Way(Scripted("long")), Way(Scripted("short"))
    states = states_of({})
    first = RoutedEngine(long, short, probe_of(1.0), states).identity
    assert RoutedEngine(long, short, probe_of(1.0), states).identity == first
    others = [
        RoutedEngine(long, short, probe_of(2.0), states),
        RoutedEngine(long, short, probe_of(1.0), states, 0.4),
        RoutedEngine(long, replace(short, suffix=(1,)), probe_of(1.0), states),
        CarEngine(short, long, GATE),
        CarEngine(short, long, GATE, short_tokens=9),
        CarEngine(short, long, replace(GATE, right_share=0.5)),
    ]
    assert len({first, *(other.identity for other in others)}) == 7
    with pytest.raises(RpamError, match=r"threshold 1\.5 is no probability"):
        RoutedEngine(long, short, probe_of(1.0), states, 1.5)


def test_engines_are_closed_once() -> None:
    one, other = Scripted("one"), Scripted("other")
    RoutedEngine(Way(one), Way(one, (1,)), probe_of(1.0), states_of({})).close()
    CarEngine(Way(other), Way(one), GATE).close()
    assert (one.closed, other.closed) == (2, 1)


def test_one_gguf_with_two_modes_is_measured_like_any_model(engine: LlamaCppEngine, tmp_path: Path) -> None:
    questions = [Question(str(i), f"What is {i} + {i}?", str(2 * i)) for i in range(12)]
    prompts = [engine.chat_prompt(q.question) for q in questions]
    states = partial(last_hidden_states, engine)
    probe = fit_probe(states(prompts), ["long", "short"] * 6, folds=2, strength=100.0)
    suffix = empty_think(engine.tokenize, engine.opens_think)
    assert suffix == engine.tokenize("<think>\n\n</think>\n\n")
    assert empty_think(engine.tokenize, True) == engine.tokenize("\n</think>\n\n")
    routed: Engine = RoutedEngine(Way(engine), Way(engine, suffix), probe, states)
    records = answer_questions(routed, questions, tmp_path / "routed.jsonl", 8)
    plain = answer_questions(engine, questions, tmp_path / "plain.jsonl", 8)
    closed = answer_questions(
        engine,
        questions,
        tmp_path / "closed.jsonl",
        8,
        prompts={q.key: (*p, *suffix) for q, p in zip(questions, prompts, strict=True)},
    )
    # The probe has more values than questions: it tells its own labels, so long and short alternate.
    assert [r.text for r in records] == [(closed if i % 2 else plain)[i].text for i in range(12)]
    assert [r.tokens for r in records] == [(closed if i % 2 else plain)[i].tokens for i in range(12)]
    assert any(a.text != b.text for a, b in zip(plain, closed, strict=True))


def test_a_think_block_that_the_prompt_opened_and_nothing_closed_is_told() -> None:
    """Reasoning must not be graded as an answer, and a short answer behind a closed block must."""
    question = Question("a", "?", "42")
    long = Scripted("long", opens_think=True, answer=r"so \boxed{42} but wait")
    short = Scripted("short", opens_think=True, answer=r"\boxed{42}")
    requests = [Request("a/0", (1,), 100), Request("a/1", (2,), 100)]
    routed = RoutedEngine(Way(long), Way(short, (7,)), probe_of(1.0), states_of({(1,): 9.0, (2,): -9.0}))
    records = {c.key: to_record(c, question, think_open=routed.opens_think) for c in routed.generate(requests)}
    assert {k: (r.correct, r.think_block) for k, r in records.items()} == {
        "a/0": (True, "none"),
        "a/1": (False, "open"),
    }
    thought = Scripted("long", opens_think=True, answer=r"so</think>\boxed{42}")
    (closed,) = CarEngine(Way(Scripted("short", -9.0)), Way(thought), GATE).generate(requests[:1])
    record = to_record(closed, question)
    assert (record.correct, record.think_block, record.text) == (True, "closed", r"so</think>\boxed{42}")
