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
    """One completion to generate."""

    key: str
    prompt: tuple[int, ...]
    max_tokens: int
    sampling: Sampling = Sampling()


@dataclass(frozen=True)
class Completion:
    """What came out: the generated token ids (end-of-generation token left out) and their bytes.

    `finish_reason` is "length" where `max_tokens` ended it: the answer is truncated.
    """

    key: str
    token_ids: tuple[int, ...]
    pieces: tuple[bytes, ...]
    finish_reason: Literal["stop", "length"]

    @property
    def text(self) -> str:
        """The generated text; bytes that are no UTF-8 are replaced."""
        return b"".join(self.pieces).decode("utf-8", errors="replace")

    @property
    def generated(self) -> int:
        """Tokens the engine generated, the end-of-generation token counted."""
        return len(self.token_ids) + (self.finish_reason == "stop")


class Engine(Protocol):
    """Runs one model."""

    def chat_prompt(self, question: str) -> tuple[int, ...]:
        """Token ids of one user turn in the model's own chat template, ready for an answer."""
        ...

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """Complete all requests, yielding each as it ends, in no promised order."""
        ...
