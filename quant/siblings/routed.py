"""Self-Route: a probe on the prompt's hidden state chooses between thinking and answering at once.

After Self-Route (arXiv 2505.20664), with the last layer instead of all and the prompt's last token instead of that of
a short draft. Choosing generates no token; it costs one more reading of the prompt.

    engine = LlamaCppEngine(Path("merged.gguf"))
    states = partial(last_hidden_states, engine)
    probe = fit_probe(states(prompts), labels)
    short = Way(engine, empty_think(engine.tokenize, engine.opens_think))
    evaluate([engine, RoutedEngine(Way(engine), short, probe, states)], ["gsm8k"])
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property

from quant.engines import Completion, Request
from quant.siblings.probe import Mode, Probe
from quant.siblings.states import States
from quant.siblings.way import Way, close_all, identity_of
from rpam_lite.errors import RpamError


class RoutedEngine:
    """Answers each request in one of two ways.

    Args:
        long: How to answer at length; its engine makes the prompts, which the probe reads.
        short: How to answer shortly: the same engine with `empty_think` as suffix, or another engine.
        probe: Chooses.
        states: Hidden states of prompts, of the model that the probe was fitted on.
        threshold: P(short) from which the short way is taken; higher thinks more.
        name: What tables call it.

    Raises:
        RpamError: The threshold is not between 0 and 1.
    """

    def __init__(
        self, long: Way, short: Way, probe: Probe, states: States, threshold: float = 0.5, name: str = "self-route"
    ) -> None:
        if not 0 <= threshold <= 1:
            raise RpamError(f"threshold {threshold} is no probability; choose it between 0 and 1.")
        self.long, self.short = long, short
        self.probe, self.threshold, self.name = probe, threshold, name
        self._states = states

    @cached_property
    def identity(self) -> str:
        """Hash of both ways, the probe and the threshold."""
        return identity_of((self.long, self.short), f"route {self.probe} {self.threshold}")

    @property
    def opens_think(self) -> bool:
        """False: a block that a prompt opened is told in the answer, see `Way.completion`."""
        return False

    def chat_prompt(self, question: str) -> tuple[int, ...]:
        """The long way's prompt of one user turn."""
        return self.long.engine.chat_prompt(question)

    def choose(self, prompts: Sequence[tuple[int, ...]]) -> list[Mode]:
        """The way of each prompt; one that occurs more than once is read once.

        Raises:
            RpamError: A prompt is empty (a server made it), or the states are another model's.
        """
        different = list(dict.fromkeys(prompts))
        p_short = dict(zip(different, self.probe.p_short(self._states(different)), strict=True))
        return ["short" if p_short[prompt] >= self.threshold else "long" for prompt in prompts]

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """Complete all requests, those of the short way first.

        Yields:
            The engines' own completions, their share of the choosing added to `seconds`.

        Raises:
            RpamError: As `choose`, or an engine fails.
        """
        if not requests:
            return
        began = time.monotonic()
        modes = self.choose([r.prompt for r in requests])
        seconds = (time.monotonic() - began) / len(requests)
        for mode, way in (("short", self.short), ("long", self.long)):
            asked = [way.request(r) for r, m in zip(requests, modes, strict=True) if m == mode]
            for completion in way.engine.generate(asked):
                told = way.completion(completion, self.long.engine)
                yield replace(told, seconds=told.seconds + seconds)

    def close(self) -> None:
        """Close both engines."""
        close_all((self.long, self.short))
