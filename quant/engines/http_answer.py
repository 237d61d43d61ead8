"""What OpenAI-compatible servers answer, and the completion that is in it."""

from __future__ import annotations

from pydantic import BaseModel, Field

from quant.engines.base import Completion, Request
from quant.engines.chat import ChatTokenizer
from rpam_lite.checkpoint.think import THINK_CLOSE, THINK_OPEN
from rpam_lite.errors import RpamError


class Model(BaseModel):
    """A served model; `owned_by` tells what kind of server it is."""

    id: str
    owned_by: str | None = None


class Models(BaseModel):
    """Answer of GET /v1/models."""

    data: list[Model]


class _TokenLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int] | None = None


class _Logprobs(BaseModel):
    """Of chat completions, and of llama-server's plain ones: `content`; of plain ones elsewhere: two lists."""

    content: list[_TokenLogprob] | None = None
    tokens: list[str] | None = None
    token_logprobs: list[float] | None = None

    def tell(self) -> list[tuple[bytes, float]]:
        """Bytes and log-probability of each told token."""
        if self.content is not None:
            return [(bytes(t.bytes) if t.bytes else t.token.encode(), t.logprob) for t in self.content]
        pairs = zip(self.tokens or [], self.token_logprobs or [], strict=False)
        return [(token.encode(), logprob) for token, logprob in pairs]


class _Message(BaseModel):
    """The think block stands apart where the server parses it: `reasoning` is vLLM's newer name for it."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class _Choice(BaseModel):
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None
    token_ids: list[int] | None = None  # vLLM, where asked for

    def told(self) -> list[tuple[bytes, float]]:
        """Bytes and log-probability of each token, where the server tells."""
        return self.logprobs.tell() if self.logprobs else []


class _TextChoice(_Choice):
    text: str


class _ChatChoice(_Choice):
    message: _Message

    @property
    def text(self) -> str:
        """The answer with its think block put back; a block that was cut off stays open."""
        thought, content = self.message.reasoning_content or self.message.reasoning, self.message.content or ""
        if not thought:
            return content
        opened = f"{THINK_OPEN}\n{thought.strip()}"
        if not content and self.finish_reason == "length":
            return opened
        return f"{opened}\n{THINK_CLOSE}\n\n{content.lstrip()}"


class _Usage(BaseModel):
    completion_tokens: int | None = Field(default=None, ge=0)


class TextAnswer(BaseModel):
    """Answer of POST /v1/completions."""

    choices: list[_TextChoice] = Field(min_length=1)
    usage: _Usage | None = None


class ChatAnswer(BaseModel):
    """Answer of POST /v1/chat/completions."""

    choices: list[_ChatChoice] = Field(min_length=1)
    usage: _Usage | None = None


def to_completion(
    answer: TextAnswer | ChatAnswer, request: Request, seconds: float, tokenizer: ChatTokenizer | None, url: str
) -> Completion:
    """The completion in an answer.

    Token ids and their bytes are the server's where it tells them. Else the text is tokenized again, and these
    tokens count as the generated ones if there are as many (some servers count the end token, some don't).

    Raises:
        RpamError: The server withholds the answer, or tells no token count or log-probabilities.
    """
    choice = answer.choices[0]
    reason = choice.finish_reason
    if reason != "stop" and reason != "length":
        raise RpamError(
            f"{url}: ended request {request.key!r} with finish_reason {reason!r}, neither 'stop' nor 'length', so its "
            "answer is not the model's whole one; switch off filters and tool parsers on the server."
        )
    text, stopped = choice.text, reason == "stop"
    told = choice.told()
    counted = answer.usage.completion_tokens if answer.usage else None
    generated = counted if counted is not None else len(choice.token_ids or told)
    if counted is None and not generated:
        raise RpamError(
            f"{url}: tells no usage.completion_tokens for request {request.key!r}, so lengths can't be measured; "
            "use a server that counts tokens."
        )
    if request.logprobs and not told:
        raise RpamError(
            f"{url}: tells no log-probabilities for request {request.key!r}; start the server with them switched on "
            "(llama-cpp-python: --logits_all true), or do not ask for them."
        )
    whole = len(told)
    told = _without_end(told, text.encode()) if stopped else told
    ids = tuple(choice.token_ids or ()) if tokenizer else ()
    if tokenizer and ids:
        ids = ids[:-1] if stopped and ids[-1] in tokenizer.end_ids else ids
        pieces = tuple(tokenizer.pieces.get(i, b"") for i in ids)
        told = choice.told()[: len(ids)]
    elif b"".join(piece for piece, _ in told) == text.encode() and told:
        pieces = tuple(piece for piece, _ in told)
    else:
        counts = {generated, generated - 1} if stopped else {generated}
        pieces = _tokenized(text, tokenizer, {len(told)} if whole else counts)
    logprobs = tuple(logprob for _, logprob in told) if request.logprobs else None
    return Completion(request.key, ids, pieces, "stop" if stopped else "length", generated, seconds, logprobs)


def _without_end(told: list[tuple[bytes, float]], text: bytes) -> list[tuple[bytes, float]]:
    """The told tokens without the end token, which some servers tell (empty, or by name) and some don't."""
    if not told:
        return told
    joined, last = b"".join(piece for piece, _ in told), told[-1][0]
    if not last or joined == text + last:
        return told[:-1]
    # Part of a character is told as a replacement character: then the pieces don't make up the text.
    return told if joined == text or text.endswith(last) or "\ufffd".encode() in last else told[:-1]


def _tokenized(text: str, tokenizer: ChatTokenizer | None, counts: set[int]) -> tuple[bytes, ...]:
    """Bytes of the text's tokens if there are as many as were generated, else the whole text in one."""
    if tokenizer and len(ids := tokenizer.encode(text)) in counts:
        return tuple(tokenizer.pieces.get(i, b"") for i in ids)
    return (text.encode(),) if text else ()
