"""A way to answer: an engine, and what is put behind the prompt before it answers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from quant.engines import Completion, Engine, Request
from rpam_lite.checkpoint.think import THINK_CLOSE, THINK_OPEN
from rpam_lite.errors import RpamError


@dataclass(frozen=True)
class Way:
    """One way to answer.

    Attributes:
        engine: Who answers.
        suffix: Token ids behind the prompt that close the think block before it has begun (`empty_think`). They are
            read, not generated: no count of generated tokens has them.
        own_prompt: Whether the engine makes its own prompt of the request's question, in its own chat template and
            vocabulary; else it gets the request's token ids.
    """

    engine: Engine
    suffix: tuple[int, ...] = ()
    own_prompt: bool = False

    def request(self, request: Request) -> Request:
        """The request as this way asks it.

        Raises:
            RpamError: The engine shall make the prompt, and the request carries no question.
        """
        if self.own_prompt and not request.question:
            raise RpamError(
                f"request {request.key!r}: carries no question for {self.engine.name} to make its own prompt of; "
                "give the question, or leave `own_prompt` out where both models share a template."
            )
        prompt = self.engine.chat_prompt(request.question) if self.own_prompt else request.prompt
        return replace(request, prompt=prompt + self.suffix)

    def completion(self, completion: Completion, asker: Engine) -> Completion:
        """The completion, with the think block that its prompt opened and that it never closed told in its text.

        Of two ways one may open a block and the other not, so that no `opens_think` is right for both. A closed block
        tells itself.

        Args:
            completion: Of this way.
            asker: Whose chat template the prompt is from, where this way does not make its own.
        """
        opened = (self.engine if self.own_prompt else asker).opens_think and not self.suffix
        if not opened or THINK_CLOSE in completion.text:
            return completion
        first, *rest = completion.pieces or (b"",)
        return replace(completion, pieces=(f"{THINK_OPEN}\n".encode() + first, *rest))


def empty_think(tokenize: Callable[[str], tuple[int, ...]], opens_think: bool) -> tuple[int, ...]:
    """Token ids that close an empty think block behind a prompt: how a hybrid model is told not to think.

    Args:
        tokenize: Of the model, markers such as <think> parsed: `LlamaCppEngine.tokenize`, `ChatTokenizer.encode`.
        opens_think: Of the engine: a block that the chat template opens (R1) is only closed.
    """
    return tokenize(f"\n{THINK_CLOSE}\n\n" if opens_think else f"{THINK_OPEN}\n\n{THINK_CLOSE}\n\n")


def identity_of(ways: Sequence[Way], rule: str) -> str:
    """Identity of an engine that chooses between ways by a rule: changes when any of them does."""
    told = [f"{way.engine.identity} {way.suffix} {way.own_prompt}" for way in ways]
    return hashlib.sha256("\n".join([*told, rule]).encode()).hexdigest()[:16]


def close_all(ways: Sequence[Way]) -> None:
    """Close the engines, one that several ways share once."""
    for engine in {id(way.engine): way.engine for way in ways}.values():
        engine.close()
