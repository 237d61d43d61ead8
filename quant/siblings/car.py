"""CAR: answer shortly first, and think only where the short answer's perplexity says that it is wrong.

Certainty-based Adaptive Reasoning (arXiv 2505.15154): the perplexity of short answers is taken as N(m1, s1) where they
are right and N(m0, s0) where they are wrong, both estimated on calibration questions together with the share of right
ones; Bayes' rule then gives P(wrong), and the model thinks where that is above one half. The paper tunes one model on
answers of both kinds; here any two ways to answer will do.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from quant.engines import Completion, Request
from quant.siblings.way import Way, close_all, identity_of
from rpam_lite.checkpoint.files import read_json, write_json
from rpam_lite.errors import RpamError

GATE_VERSION = 1
# Perplexities closer than this differ by rounding only: no Gaussian is narrower.
_LEAST_SPREAD = 1e-3


@dataclass(frozen=True)
class Gate:
    """Gaussians of the short answer's perplexity, and the share of right ones.

    Attributes:
        right_mean: Mean perplexity of right answers.
        right_spread: Its standard deviation.
        wrong_mean: Of wrong answers.
        wrong_spread: Of wrong answers.
        right_share: Share of right answers, before the perplexity is known.
    """

    right_mean: float
    right_spread: float
    wrong_mean: float
    wrong_spread: float
    right_share: float

    def p_wrong(self, perplexity: float) -> float:
        """Probability that an answer of this perplexity is wrong, by Bayes' rule.

        The Gaussians differ in width, so it need not rise with the perplexity everywhere: far out the wider wins.
        """
        right = math.log(self.right_share) + _log_density(perplexity, self.right_mean, self.right_spread)
        wrong = math.log(1 - self.right_share) + _log_density(perplexity, self.wrong_mean, self.wrong_spread)
        return 0.5 * (1 + math.tanh((wrong - right) / 2))


def fit_gate(perplexities: Sequence[float | None], correct: Sequence[bool]) -> Gate:
    """Fit the gate on short answers to calibration questions.

    Args:
        perplexities: Of each answer, see `perplexity`; an answer without any is left out, since none ever stands.
        correct: Whether it was right.

    Raises:
        RpamError: Not one verdict an answer, a perplexity is no number, or fewer than two answers are right or wrong.
            Where all are right (or wrong) there is no decision to learn: the Short (or the Long) model alone is it.
    """
    if len(perplexities) != len(correct):
        raise RpamError(f"there are {len(perplexities)} perplexities and {len(correct)} verdicts; give one each.")
    told = [(p, c) for p, c in zip(perplexities, correct, strict=True) if p is not None]
    values, right = np.array([p for p, _ in told], np.float64), np.array([c for _, c in told], bool)
    if not np.isfinite(values).all():
        number = int(np.flatnonzero(~np.isfinite(values))[0])
        raise RpamError(f"the perplexity of answer {number} is {values[number]}; leave that answer out.")
    for kind, count, alone in (("right", right.sum(), "Long"), ("wrong", (~right).sum(), "Short")):
        if count < 2:
            raise RpamError(
                f"only {count} of {len(right)} calibration answers are {kind}, and a Gaussian needs 2: calibrate on "
                f"more questions; if it stays so, use the {alone} model alone."
            )
    return Gate(*_gaussian(values[right]), *_gaussian(values[~right]), float(right.mean()))


def perplexity(completion: Completion) -> float | None:
    """exp of the mean negative log-probability of an answer's tokens, the end token left out; None without tokens.

    Raises:
        RpamError: The engine tells no log-probabilities.
    """
    if completion.logprobs is None:
        raise RpamError(
            f"completion {completion.key!r} comes without log-probabilities, which CAR decides by; "
            "run the short way on a GGUF file or a Hugging Face folder."
        )
    return math.exp(-sum(completion.logprobs) / len(completion.logprobs)) if completion.logprobs else None


def write_gate(gate: Gate, path: Path) -> None:
    """Keep a gate as JSON."""
    write_json(path, {"version": GATE_VERSION, **asdict(gate)})


def read_gate(path: Path) -> Gate:
    """Read what `write_gate` wrote.

    Raises:
        RpamError: The file is missing, damaged, or of another version.
    """
    told = read_json(path, "the gate")
    if told.pop("version", None) != GATE_VERSION:
        raise RpamError(f"{path}: is no gate of version {GATE_VERSION}; fit it again.")
    try:
        gate = Gate(**{name: float(value) for name, value in told.items()})
    except (TypeError, ValueError) as error:
        raise RpamError(f"{path}: the gate is damaged ({error}); fit it again.") from None
    if not (0 < gate.right_share < 1 and gate.right_spread > 0 and gate.wrong_spread > 0):
        raise RpamError(f"{path}: the gate is damaged (a spread or right_share is out of range); fit it again.")
    return gate


class CarEngine:
    """Answers shortly, and again at length where the short answer seems wrong.

    `generated` counts both attempts and stays within the request's `max_tokens`: the second one has what the first has
    left. Text, tokens and log-probabilities are those of the attempt that stands. A short attempt that is cut off or
    has no token never stands while tokens are left.

    Args:
        short: How to answer first.
        long: How to answer where that seems wrong; its engine makes the prompts.
        gate: Decides.
        short_tokens: Tokens after which a short attempt is given up.
        name: What tables call it.

    Raises:
        RpamError: `short_tokens` is not positive.
    """

    def __init__(self, short: Way, long: Way, gate: Gate, short_tokens: int = 512, name: str = "car") -> None:
        if short_tokens < 1:
            raise RpamError(f"short_tokens is {short_tokens}; a short attempt needs at least 1.")
        self.short, self.long = short, long
        self.gate, self.short_tokens, self.name = gate, short_tokens, name

    @cached_property
    def identity(self) -> str:
        """Hash of both ways, the gate and the limit of the short attempt."""
        return identity_of((self.short, self.long), f"car {self.gate} {self.short_tokens}")

    @property
    def opens_think(self) -> bool:
        """False: a block that a prompt opened is told in the answer, see `Way.completion`."""
        return False

    def chat_prompt(self, question: str) -> tuple[int, ...]:
        """The long way's prompt of one user turn."""
        return self.long.engine.chat_prompt(question)

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """Complete all requests: short answers that stand as they end, then the others.

        Raises:
            RpamError: The short way's engine tells no log-probabilities, or an engine fails.
        """
        by_key = {r.key: r for r in requests}
        first = [replace(r, logprobs=True, max_tokens=min(r.max_tokens, self.short_tokens)) for r in requests]
        attempts: dict[str, Completion] = {}
        for attempt in self.short.engine.generate([self.short.request(r) for r in first]):
            request = by_key[attempt.key]
            if self._stands(attempt) or attempt.generated >= request.max_tokens:
                told = self.short.completion(attempt, self.long.engine)
                yield told if request.logprobs else replace(told, logprobs=None)
            else:
                attempts[attempt.key] = attempt
        again = [
            replace(by_key[key], max_tokens=by_key[key].max_tokens - attempt.generated)
            for key, attempt in attempts.items()
        ]
        for completion in self.long.engine.generate([self.long.request(r) for r in again]):
            attempt = attempts[completion.key]
            yield replace(
                self.long.completion(completion, self.long.engine),
                generated=attempt.generated + completion.generated,
                seconds=attempt.seconds + completion.seconds,
            )

    def close(self) -> None:
        """Close both engines."""
        close_all((self.short, self.long))

    def _stands(self, attempt: Completion) -> bool:
        uncertainty = perplexity(attempt)
        if uncertainty is None or attempt.finish_reason == "length":
            return False
        return self.gate.p_wrong(uncertainty) <= 0.5


def _gaussian(values: np.ndarray) -> tuple[float, float]:
    return float(values.mean()), max(float(values.std(ddof=1)), _LEAST_SPREAD)


def _log_density(x: float, mean: float, spread: float) -> float:
    """Of the Gaussian, without the constant that all share."""
    return -math.log(spread) - 0.5 * ((x - mean) / spread) ** 2
