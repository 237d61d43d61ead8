"""An engine whose answers are given, and a probe and states that decide as given, for the tests of siblings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from quant.engines import Completion, Request
from quant.siblings import Gate, Probe

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


def states_of(rows: Mapping[tuple[int, ...], float]) -> Callable[[Sequence[tuple[int, ...]]], Any]:
    """States [prompts, 1] by prompt."""
    return lambda prompts: np.array([[rows[p]] for p in prompts], np.float32)


def probe_of(weight: float, bias: float = 0.0) -> Probe:
    """A probe of one value, which says Short where weight * value + bias is positive."""
    return Probe((0.0,), (1.0,), (weight,), bias, 1.0, 0.5, 10, 5, 0)
