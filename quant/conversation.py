"""A conversation with a GGUF file: turn after turn in its own chat template, think block and answer told apart.

Every turn's text goes back into the template as it was generated; the template says whether earlier think blocks stay
(those of R1 and Qwen3 drop them). A turn that ended inside its think block has no answer, and is forgotten.
"""

from __future__ import annotations

import codecs
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from quant.engines import Request, Sampling
from quant.engines.llama_cpp import LlamaCppEngine
from quant.records import think_block
from rpam_lite.checkpoint.think import THINK_CLOSE, THINK_OPEN, ends_in_open_block
from rpam_lite.errors import RpamError

Part = Literal["think", "answer"]
Ended = Literal["stop", "length", "context", "stopped"]
Show = Callable[[Part, str], None]


@dataclass(frozen=True)
class Turn:
    """One question and what came of it.

    Attributes:
        question: As asked.
        think: Text of the think block; empty without one.
        answer: Text of the answer.
        think_tokens: Generated tokens inside the block, as `quant.records.think_block` counts them.
        answer_tokens: All others that were generated: those of the answer, the block's marks, and the end token.
        seconds: From the first generated token to the last one.
        ended: "stop": by itself; "length": at `max_tokens`; "context": the context was full; "stopped": by the user.
        kept: Whether the conversation goes on from it; not if it has no answer.
    """

    question: str
    think: str
    answer: str
    think_tokens: int
    answer_tokens: int
    seconds: float
    ended: Ended
    kept: bool

    @property
    def tokens_per_second(self) -> float:
        """Speed of generation; the prompt's reading is not in it."""
        return max(0, self.think_tokens + self.answer_tokens - 1) / self.seconds if self.seconds > 0 else 0.0


class Splitter:
    """Tells think block and answer apart in bytes that come token by token.

    A character whose bytes are spread over tokens, and what may become a mark, wait for the next bytes.

    Args:
        opened: Whether the prompt had opened the block.
        show: Told of every piece of text, and of which part it is.
    """

    def __init__(self, opened: bool, show: Show) -> None:
        self.text: dict[Part, str] = {"think": "", "answer": ""}
        self._part: Part = "think" if opened else "answer"
        self._closed = False
        self._show = show
        self._decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode
        self._waiting = ""

    def feed(self, data: bytes, last: bool = False) -> None:
        """Take the bytes of the next token; with `last` nothing waits any more."""
        self._waiting += self._decode(data, last)
        while not self._closed and (mark := self._next_mark()):
            before, _, self._waiting = self._waiting.partition(mark)
            self._tell(before)
            if mark == THINK_CLOSE:
                if self._part == "answer":  # closed without having been opened: all before it was the block
                    self.text = {"think": self.text["answer"], "answer": ""}
                self._closed = True
            self._part = "think" if mark == THINK_OPEN else "answer"
        held = 0 if last or self._closed else _begun(self._waiting)
        ready = len(self._waiting) - held
        self._tell(self._waiting[:ready])
        self._waiting = self._waiting[ready:]

    def _next_mark(self) -> str | None:
        """The first mark in what waits; an opened block is not opened again."""
        marks = (THINK_CLOSE,) if self._part == "think" else (THINK_OPEN, THINK_CLOSE)
        places = {self._waiting.find(mark): mark for mark in marks if mark in self._waiting}
        return places[min(places)] if places else None

    def _tell(self, text: str) -> None:
        # Blank lines around the marks belong to neither part.
        text = text if self.text[self._part] else text.lstrip()
        if text:
            self.text[self._part] += text
            self._show(self._part, text)


class Conversation:
    """Turns of one user with one model.

    Args:
        engine: Runs it.
        context: Tokens of all turns together.
        sampling: How tokens are drawn; the seed of each turn is one higher.
        max_tokens: Generated tokens a turn; what the context leaves if None.
        system: System prompt; none where empty.

    Raises:
        RpamError: There is no memory for the context.
    """

    def __init__(
        self,
        engine: LlamaCppEngine,
        context: int,
        sampling: Sampling,
        max_tokens: int | None = None,
        system: str = "",
    ) -> None:
        self.engine, self.context, self.sampling, self.max_tokens = engine, context, sampling, max_tokens
        self.system = system
        self._messages: list[dict[str, str]] = []
        self._asked = 0
        self._decoder = engine.open(-(-context // 256) * 256)

    def close(self) -> None:
        """Free the context; the engine is its owner's."""
        self._decoder.free()

    def forget(self) -> None:
        """Begin anew."""
        self._messages.clear()

    def ask(self, question: str, show: Show, stopped: Callable[[], bool] = lambda: False) -> Turn:
        """Ask a question and show the answer as it comes.

        Args:
            question: The user's turn.
            show: Told of every piece of text.
            stopped: Asked after every token whether to stop.

        Raises:
            RpamError: The context has no room for an answer, or the chat template fails.
        """
        system = [{"role": "system", "content": self.system}] if self.system else []
        asked = [*self._messages, {"role": "user", "content": question}]
        text = self.engine.rendered([*system, *asked])
        prompt = self.engine.tokenize(text)
        room = self.context - len(prompt)
        if room < 1:
            raise RpamError(
                f"the context of {self.context} tokens is full: the conversation with this question has {len(prompt)}; "
                "/new begins anew, --context makes it larger."
            )
        opened = ends_in_open_block(text)
        splitter = Splitter(opened, show)
        pieces: list[bytes] = []
        times: list[float] = []
        halted = False

        def go_on(piece: bytes) -> bool:
            nonlocal halted
            if piece:
                pieces.append(piece)
                times.append(time.monotonic())
                splitter.feed(piece)
            halted = stopped()
            return not halted

        most = min(room, self.max_tokens or room)
        sampling = replace(self.sampling, seed=(self.sampling.seed + self._asked) % 2**32)
        completion = self.engine.stream(Request("chat", prompt, most, sampling), self._decoder, go_on)
        self._asked += 1
        splitter.feed(b"", last=True)
        think_tokens, block = think_block(pieces, opened)
        kept = block != "open" and bool(splitter.text["answer"].strip())
        if kept:
            generated = f"{THINK_OPEN}\n" * opened + completion.text
            self._messages = [*asked, {"role": "assistant", "content": generated}]
        cut: Ended = "stopped" if halted else "context" if most == room else "length"
        return Turn(
            question,
            splitter.text["think"].strip(),
            splitter.text["answer"].strip(),
            think_tokens,
            completion.generated - think_tokens,
            times[-1] - times[0] if times else 0.0,
            "stop" if completion.finish_reason == "stop" else cut,
            kept,
        )


def _begun(text: str) -> int:
    """Length of the text's end that a mark may begin with."""
    longest = max(len(THINK_OPEN), len(THINK_CLOSE)) - 1
    ends = range(min(longest, len(text)), 0, -1)
    return next((n for n in ends if THINK_OPEN.startswith(text[-n:]) or THINK_CLOSE.startswith(text[-n:])), 0)
