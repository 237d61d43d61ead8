"""Self-Route and CAR between two models: what they learn from calibration questions, and the engines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from quant.engines import Request
from quant.engines.llama_cpp import LlamaCppEngine
from quant.records import to_record
from quant.siblings import (
    CarEngine,
    Gate,
    Probe,
    RoutedEngine,
    Way,
    fit_gate,
    fit_probe,
    last_hidden_states,
    perplexity,
)
from quant.siblings.probe import Mode
from quant.tasks.questions import Question


@dataclass(frozen=True)
class Rules:
    """What both methods learn."""

    probe: Probe
    gate: Gate


def learn(long: LlamaCppEngine, short: LlamaCppEngine, questions: Sequence[Question], max_tokens: int) -> Rules:
    """Learn from Short's greedy answers: which questions it solves, and how sure of itself it is when it does."""
    asked = [Request(q.key, short.chat_prompt(q.question), max_tokens, logprobs=True) for q in questions]
    done = {c.key: c for c in short.generate(asked)}
    correct = [to_record(done[q.key], q).correct for q in questions]
    labels: list[Mode] = ["short" if right else "long" for right in correct]
    states = last_hidden_states(long, [long.chat_prompt(q.question) for q in questions])
    return Rules(fit_probe(states, labels), fit_gate([perplexity(done[q.key]) for q in questions], correct))


def self_route(long: LlamaCppEngine, short: LlamaCppEngine, rules: Rules) -> RoutedEngine:
    """The probe chooses; it reads the prompt once more and generates nothing."""
    return RoutedEngine(Way(long), Way(short), rules.probe, partial(last_hidden_states, long))


def car(long: LlamaCppEngine, short: LlamaCppEngine, rules: Rules) -> CarEngine:
    """Short answers first; the tokens of an answer that does not stand count too."""
    return CarEngine(Way(short), Way(long), rules.gate)
