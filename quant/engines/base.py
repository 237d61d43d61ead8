"""The seam between measuring and running: requests go in, completions come out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn; temperature 0 is greedy and ignores the rest."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0


@dataclass(frozen=True)
class Request:
    """One completion to generate.

    Attributes:
        key: Comes back with the completion.
        prompt: Token ids; empty where a server applies its own chat template to `question`.
        max_tokens: Generated tokens at most.
        sampling: How tokens are drawn.
        question: The user turn that the prompt was made from.
        logprobs: Whether the log-probability of each generated token is wanted.
    """

    key: str
    prompt: tuple[int, ...]
    max_tokens: int
    sampling: Sampling = Sampling()
    question: str = ""
    logprobs: bool = False


@dataclass(frozen=True)
class Completion:
    """What came out.

    Attributes:
        key: Of the request.
        token_ids: Generated token ids, the end-of-generation token left out; empty where a server does not tell.
        pieces: Their bytes, one a token; where a server does not tell, the whole text in one.
        finish_reason: "length" where `max_tokens` ended it: the answer is truncated.
        generated: Tokens the engine generated, the end-of-generation token counted.
        seconds: From when its prompt was taken up to its end; others ran beside it.
        logprobs: Natural log-probability of each of `token_ids` before temperature and truncation of the
            distribution, where asked for.
    """

    key: str
    token_ids: tuple[int, ...]
    pieces: tuple[bytes, ...]
    finish_reason: Literal["stop", "length"]
    generated: int
    seconds: float = 0.0
    logprobs: tuple[float, ...] | None = None

    @property
    def text(self) -> str:
        """The generated text; bytes that are no UTF-8 are replaced."""
        return b"".join(self.pieces).decode("utf-8", errors="replace")


class Engine(Protocol):
    """Runs one model."""

    @property
    def name(self) -> str:
        """What tables call it."""
        ...

    @property
    def identity(self) -> str:
        """What its records name it by: changes when the model does."""
        ...

    @property
    def opens_think(self) -> bool:
        """Whether its chat template ends in an open think block, so that answers only close it."""
        ...

    def chat_prompt(self, question: str) -> tuple[int, ...]:
        """Token ids of one user turn in the model's own chat template, ready for an answer.

        Empty where only a server knows the template.
        """
        ...

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """Complete all requests, yielding each as it ends, in no promised order."""
        ...

    def close(self) -> None:
        """Free what it holds; it can't be used after this."""
        ...
