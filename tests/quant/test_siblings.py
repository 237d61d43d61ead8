"""Siblings: probes learn what can be learned, CAR decides as Bayes does, and no choice beats the oracle."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from export.gguf.write import write_gguf
from quant.asking import answer_questions
from quant.comparison import compare_runs
from quant.engines import Completion, Engine, Request
from quant.engines.llama_cpp import LlamaCppEngine
from quant.evaluation import ModelRun, Settings
from quant.measures import by_question, require_same_questions
from quant.records import Record, to_record
from quant.siblings import (
    CarEngine,
    Gate,
    Probe,
    RoutedEngine,
    Way,
    empty_think,
    fit_gate,
    fit_probe,
    folder_states,
    last_hidden_states,
    oracle,
    oracle_run,
    perplexity,
    read_gate,
    read_probe,
    write_gate,
    write_probe,
)
from quant.tasks.questions import Question
from rpam_lite.checkpoint.source import CheckpointSource
from rpam_lite.errors import RpamError
from tests.conftest import make_checkpoint

GATE = Gate(1.1, 0.05, 1.5, 0.2, 0.6)


class Scripted:
    """Answers with given texts, one token a character, and notes what it was asked."""

    def __init__(self, name: str, logprob: float = -0.1, opens_think: bool = False, answer: str = "abc") -> None:
        self.name = self.identity = name
        self.logprob, self.opens_think, self.answer = logprob, opens_think, answer
        self.asked: list[Request] = []
        self.closed = 0

    def chat_prompt(self, question: str) -> tuple[int, ...]:
        return (len(self.name), *question.encode())

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        for request in requests:
            self.asked.append(request)
            text = self.answer[: request.max_tokens]
            cut = len(self.answer) >= request.max_tokens
            yield Completion(
                request.key,
                tuple(text.encode()),
                tuple(c.encode() for c in text),
                "length" if cut else "stop",
                len(text) + (not cut),
                1.0,
                (self.logprob,) * len(text) if request.logprobs else None,
            )

    def close(self) -> None:
        self.closed += 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    path = tmp_path_factory.mktemp("siblings") / "hf"
    return make_checkpoint(path, 5, tokenizer, hidden_size=256, intermediate_size=256, initializer_range=0.2)


@pytest.fixture(scope="module")
def gguf(folder: Path) -> Path:
    source = CheckpointSource(folder)
    write_gguf(source, source.config, folder, folder.parent / "model.gguf", "F32", "test")
    return folder.parent / "model.gguf"


@pytest.fixture
def engine(gguf: Path) -> Iterator[LlamaCppEngine]:
    with LlamaCppEngine(gguf, 4, threads=1) as loaded:
        yield loaded


def states_of(rows: Mapping[tuple[int, ...], float]) -> Callable[[Sequence[tuple[int, ...]]], Any]:
    """States [prompts, 1] by prompt."""
    return lambda prompts: np.array([[rows[p]] for p in prompts], np.float32)


def probe_of(weight: float, bias: float = 0.0) -> Probe:
    return Probe((0.0,), (1.0,), (weight,), bias, 1.0, 0.5, 10, 5, 0)


def test_llama_cpp_and_transformers_agree_on_the_hidden_state(folder: Path, engine: LlamaCppEngine) -> None:
    generator = np.random.default_rng(0)
    # Shorter than, as long as, and longer than the pieces that llama.cpp is given at a time.
    prompts = [tuple(generator.integers(0, 470, n).tolist()) for n in (1, 7, 64, 65, 150)]
    ours = last_hidden_states(engine, prompts)
    theirs = folder_states(folder)(prompts)
    assert ours.shape == theirs.shape == (5, 256)
    assert ours.dtype == theirs.dtype == np.float32
    # llama.cpp keeps its cache in 16 bits.
    assert np.abs(ours - theirs).max() < 0.02 * np.abs(theirs).max()
    assert np.abs(theirs[0] - theirs[1]).max() > 0.5 * np.abs(theirs).max()
    np.testing.assert_array_equal(last_hidden_states(engine, prompts[::-1])[::-1], ours)


def test_a_prompt_without_tokens_has_no_state(folder: Path, engine: LlamaCppEngine) -> None:
    for states in (partial(last_hidden_states, engine), folder_states(folder)):
        with pytest.raises(RpamError, match="prompt 1 has no tokens; make prompts with chat_prompt"):
            states([(1,), ()])
        with pytest.raises(RpamError, match="there are no prompts to read hidden states of"):
            states([])


def separable(count: int = 60, seed: int = 0) -> tuple[Any, list[Any]]:
    """States [count, 8] whose label is told by one direction, off the origin."""
    states = np.random.default_rng(seed).normal(size=(count, 8)).astype(np.float32) * 5 + 100
    return states, ["short" if row[2] - row[5] > 0 else "long" for row in states]


def test_a_probe_learns_a_linear_rule_and_says_how_well() -> None:
    states, labels = separable()
    probe = fit_probe(states, labels, strength=10.0)
    held_out, expected = separable(200, seed=1)
    told = ["short" if p >= 0.5 else "long" for p in probe.p_short(held_out)]
    assert np.mean([a == b for a, b in zip(told, expected, strict=True)]) > 0.93
    assert probe.accuracy > 0.9
    assert probe.majority == max(labels.count("short"), labels.count("long")) / 60
    shuffled = list(np.random.default_rng(2).permutation(labels))
    assert fit_probe(states, shuffled).accuracy < 0.7


def test_a_probe_gives_scikit_learns_own_probabilities() -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    states, labels = separable()
    states[:, 3] = 7.0  # never changes: no scale
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000)).fit(states, labels)
    expected = model.predict_proba(states)[:, list(model.classes_).index("short")]
    np.testing.assert_allclose(fit_probe(states, labels).p_short(states), expected, atol=1e-5)


def test_a_probe_comes_back_from_its_file(tmp_path: Path) -> None:
    probe = fit_probe(*separable(), seed=3)
    write_probe(probe, tmp_path / "probe.json")
    assert read_probe(tmp_path / "probe.json") == probe
    told = json.loads((tmp_path / "probe.json").read_text())
    for damage, match in (
        ({"version": 0}, "is no probe of version 1; fit it again"),
        ({"weights": [1.0]}, "mean, scale and weights are 8, 8 and 1 values long"),
        ({"mean": "x"}, "the probe is damaged"),
    ):
        (tmp_path / "bad.json").write_text(json.dumps(told | damage))
        with pytest.raises(RpamError, match=match):
            read_probe(tmp_path / "bad.json")


@pytest.mark.parametrize(
    ("labels", "match"),
    [
        (["long"] * 60, "none of the 60 labels is 'short', so there is nothing to choose between"),
        (["long"] * 57 + ["short"] * 3, "only 3 of the 60 labels are 'short', fewer than the 5 folds"),
        (["long"] * 59, "the labels are 59"),
        (["long"] * 59 + ["medium"], "label 'medium' is none that a probe knows"),
    ],
)
def test_labels_that_teach_nothing_are_refused(labels: list[Any], match: str) -> None:
    with pytest.raises(RpamError, match=match):
        fit_probe(separable()[0], labels)


def test_states_of_another_model_are_refused() -> None:
    states, labels = separable()
    with pytest.raises(RpamError, match=r"reads states of 8 values and got an array of shape \(60, 7\)"):
        fit_probe(states, labels).p_short(states[:, :7])
    states[4, 1] = np.inf
    with pytest.raises(RpamError, match="the hidden state of prompt 4 has values that are not finite"):
        fit_probe(states, labels)


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


@given(st.floats(1, 6), st.floats(1, 3), st.floats(0.01, 1), st.floats(1, 5), st.floats(0.01, 1), st.floats(0.05, 0.95))
def test_the_gate_is_bayes_rule(x: float, m1: float, s1: float, m0: float, s0: float, prior: float) -> None:
    right = math.log(prior) + norm.logpdf(x, m1, s1)
    wrong = math.log(1 - prior) + norm.logpdf(x, m0, s0)
    expected = float(np.exp(wrong - np.logaddexp(right, wrong)))
    assert Gate(m1, s1, m0, s0, prior).p_wrong(x) == pytest.approx(expected, abs=1e-9)


def test_the_gate_is_fitted_as_the_paper_says(tmp_path: Path) -> None:
    gate = fit_gate([1.0, 1.2, 1.4, None, 2.0, 3.0], [True, True, True, True, False, False])
    expected = Gate(1.2, 0.2, 2.5, math.sqrt(0.5), 0.6)
    assert (gate.right_mean, gate.right_spread) == pytest.approx((expected.right_mean, expected.right_spread))
    assert (gate.wrong_mean, gate.wrong_spread) == pytest.approx((expected.wrong_mean, expected.wrong_spread))
    assert gate.right_share == 0.6
    assert fit_gate([1.0, 1.0, 2.0, 3.0], [True, True, False, False]).p_wrong(1.0001) < 0.01
    write_gate(gate, tmp_path / "gate.json")
    assert read_gate(tmp_path / "gate.json") == gate
    told = json.loads((tmp_path / "gate.json").read_text())
    for damage, match in (
        ({"version": 0}, "is no gate of version 1"),
        ({"right_share": 1.0}, "right_share is out of range"),
        ({"left": 1.0}, "the gate is damaged"),
    ):
        (tmp_path / "bad.json").write_text(json.dumps(told | damage))
        with pytest.raises(RpamError, match=match):
            read_gate(tmp_path / "bad.json")


@pytest.mark.parametrize(
    ("perplexities", "correct", "match"),
    [
        ([1.0, 2.0, 3.0], [True] * 3, "only 0 of 3 calibration answers are wrong.* use the Short model alone"),
        ([1.0, 2.0, 3.0], [False] * 3, "only 0 of 3 calibration answers are right.* use the Long model alone"),
        ([1.0, 2.0, 3.0], [True, True, False], "only 1 of 3 calibration answers are wrong"),
        ([1.0, 2.0], [True], "there are 2 perplexities and 1 verdicts"),
        ([1.0, math.inf], [True, False], "the perplexity of answer 1 is inf"),
    ],
)
def test_calibration_that_teaches_nothing_is_refused(
    perplexities: list[float], correct: list[bool], match: str
) -> None:
    with pytest.raises(RpamError, match=match):
        fit_gate(perplexities, correct)


def run_car(short: Scripted, long: Scripted, max_tokens: int = 100, **settings: Any) -> Completion:
    car = CarEngine(Way(short, (7,)), Way(long), GATE, **settings)
    (done,) = car.generate([Request("a", (1, 2), max_tokens)])
    return done


def test_a_sure_short_answer_stands() -> None:
    short, long = Scripted("short", math.log(1 / 1.1)), Scripted("long", answer="thought")
    done = run_car(short, long)
    assert (done.text, done.generated, done.logprobs) == ("abc", 4, None)
    assert [r.prompt for r in short.asked] == [(1, 2, 7)]
    assert long.asked == []


def test_an_unsure_short_answer_is_thought_over_and_both_attempts_count() -> None:
    short, long = Scripted("short", math.log(1 / 1.5)), Scripted("long", answer="thought")
    done = run_car(short, long)
    assert (done.text, done.generated, done.seconds) == ("thought", 4 + 8, 2.0)
    assert [(r.prompt, r.max_tokens, r.logprobs) for r in long.asked] == [((1, 2), 96, False)]


def test_both_attempts_stay_within_the_limit() -> None:
    long = Scripted("long", answer="thought" * 5)
    done = run_car(Scripted("short", -9.0), long, max_tokens=10)
    assert (done.generated, done.finish_reason, done.text) == (10, "length", "though")
    # Nothing is left to think with.
    cut = run_car(Scripted("short", -9.0), long, max_tokens=3)
    assert (cut.generated, cut.finish_reason, cut.text) == (3, "length", "abc")


def test_a_short_attempt_that_is_cut_off_or_empty_never_stands() -> None:
    sure = math.log(1 / 1.1)
    assert run_car(Scripted("s", sure, answer="abcdef"), Scripted("l", answer="xy"), short_tokens=4).generated == 4 + 3
    assert run_car(Scripted("s", sure, answer=""), Scripted("l", answer="xy")).text == "xy"
    with pytest.raises(RpamError, match="short_tokens is 0"):
        run_car(Scripted("s"), Scripted("l"), short_tokens=0)


def test_an_engine_without_log_probabilities_is_refused() -> None:
    done = Completion("a", (), (b"text",), "stop", 5)
    with pytest.raises(RpamError, match="completion 'a' comes without log-probabilities"):
        perplexity(done)
    assert perplexity(replace(done, logprobs=(-1.0, -2.0))) == pytest.approx(math.exp(1.5))


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
