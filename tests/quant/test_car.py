"""CAR: the gate decides as Bayes does, an unsure short answer is thought over, and both attempts count."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from quant.engines import Completion, Request
from quant.siblings import CarEngine, Gate, Way, fit_gate, perplexity, read_gate, write_gate
from rpam_lite.errors import RpamError
from tests.quant.scripted import GATE, Scripted


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
