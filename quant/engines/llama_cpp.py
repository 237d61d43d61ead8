"""llama.cpp through its C API, many sequences decoded side by side.

llama-cpp-python's high-level `Llama` decodes one sequence at a time; how many share a batch here, see batching.py.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from jinja2.exceptions import TemplateError
from llama_cpp.llama_chat_format import Jinja2ChatFormatter

from quant.engines import llama_library
from quant.engines.base import Completion, Request
from quant.engines.batching import Decoder, Slot, run
from quant.engines.llama_library import last_log_line, load_model, new_context
from rpam_lite.checkpoint.think import ends_in_open_block
from rpam_lite.errors import RpamError

# Of a streamed request's prompt, tokens in one pass: between passes it can be stopped.
_PROMPT_PASS = 512


class LlamaCppEngine:
    """Runs one GGUF file on the CPU, or on the GPU that llama-cpp-python was built for.

    Args:
        path: GGUF file.
        parallel: Sequences decoded side by side.
        threads: CPU threads.
        context: Tokens of prompt and answer together; as many as the requests ask for if None.

    Raises:
        RpamError: The file is missing or llama.cpp can't load it.
    """

    def __init__(self, path: Path, parallel: int = 16, threads: int = 2, context: int | None = None) -> None:
        self._model = load_model(path)
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)
        self.path, self.parallel, self.threads, self.context = path, parallel, threads, context
        self.name = path.stem
        self._pieces: dict[int, bytes] = {}

    def close(self) -> None:
        """Free the model; the engine can't be used after this."""
        if self._model is not None:
            llama_cpp.llama_model_free(self._model)
            self._model = None

    def __enter__(self) -> LlamaCppEngine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @cached_property
    def identity(self) -> str:
        """Hash of the file's content."""
        with self.path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()[:16]

    @property
    def handle(self) -> Any:
        """llama.cpp's model."""
        return self._model

    @property
    def trained_context(self) -> int:
        """Tokens of the longest sequence that the model was made for."""
        return int(llama_cpp.llama_model_n_ctx_train(self._model))

    @property
    def vocabulary_size(self) -> int:
        """Tokens, padding included."""
        return int(llama_cpp.llama_vocab_n_tokens(self._vocab))

    def metadata(self, key: str) -> str | None:
        """One metadata value of the file as text; None if it has no such key."""
        return llama_library.metadata(self._model, key)

    def chat_prompt(self, question: str) -> tuple[int, ...]:
        """Token ids of one user turn in the file's own chat template, ready for an answer.

        Raises:
            RpamError: The file carries no chat template, or the template fails.
        """
        return self.tokenize(self.rendered([{"role": "user", "content": question}]))

    @cached_property
    def opens_think(self) -> bool:
        """Whether its chat template ends in an open think block, so that answers only close it."""
        return ends_in_open_block(self.rendered([{"role": "user", "content": ""}]))

    def rendered(self, messages: Sequence[Mapping[str, str]]) -> str:
        """Turns of a conversation in the file's own chat template, ready for an answer.

        Raises:
            RpamError: The file carries no chat template, or the template fails.
        """
        try:
            rendered = self._chat_formatter(messages=[dict(message) for message in messages])
        except (TemplateError, ValueError) as error:
            raise RpamError(
                f"{self.path}: its chat template fails ({error}); mend the template and export again."
            ) from None
        return str(rendered.prompt)

    @cached_property
    def _chat_formatter(self) -> Jinja2ChatFormatter:
        template = self.metadata("tokenizer.chat_template")
        if template is None:
            raise RpamError(
                f"{self.path}: carries no chat template (tokenizer.chat_template), so questions can't be asked; "
                "export it from a checkpoint whose tokenizer_config.json has one."
            )
        return Jinja2ChatFormatter(
            template=template, eos_token=self._named_token("eos"), bos_token=self._named_token("bos")
        )

    def tokenize(self, text: str) -> tuple[int, ...]:
        """Token ids of `text`, markers such as <think> parsed, nothing added."""
        return llama_library.tokenize(self._vocab, text)

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """Complete all requests, yielding each as it ends.

        Raises:
            RpamError: A prompt is empty, it does not fit the context, the context can't be made (memory), or decoding
                fails.
        """
        if not requests:
            return
        for request in requests:
            self._check(request)
        parallel = min(self.parallel, len(requests))
        room = -(-max(len(r.prompt) + r.max_tokens for r in requests) // 256) * 256
        decoder = Decoder(self._new_context(parallel, room), parallel, room, self._fail)
        try:
            for slot in run(decoder, requests, parallel, partial(self._advance, decoder)):
                yield self._completion(slot)
        finally:
            decoder.free()

    def open(self, context: int) -> Decoder:
        """A context for `stream`, to be freed: one request after the other, and what it holds of a prompt stays there.

        Args:
            context: Tokens of prompt and answer together.

        Raises:
            RpamError: It can't be made (memory).
        """
        return Decoder(self._new_context(1, context), 1, context, self._fail)

    def stream(self, request: Request, decoder: Decoder, go_on: Callable[[bytes], bool]) -> Completion:
        """Complete one request, telling every token as it comes.

        Args:
            request: What to complete; prompt and answer must fit the decoder's context.
            decoder: What `open` gave.
            go_on: Given the bytes of a token (not of one that ends the answer), says whether to go on; asked with
                none while a long prompt is read.

        Returns:
            The completion; its finish reason is "length" where `go_on` ended it.

        Raises:
            RpamError: The prompt is empty, or decoding fails.
        """
        self._check(request)
        slot = Slot(request, 0)
        decoder.take(0, request.prompt)
        try:
            while left := request.prompt[decoder.held(0) :]:
                rows = decoder.decode({0: left[:_PROMPT_PASS]})
                if not go_on(b""):
                    return self._completion(slot)
            while not self._advance(decoder, slot, rows[0]):
                if not go_on(self._piece(slot.token_ids[-1])):
                    return self._completion(slot)
                rows = decoder.decode({0: slot.token_ids[-1:]})
            if not self._ends(slot.token_ids[-1]):
                go_on(self._piece(slot.token_ids[-1]))
            return self._completion(slot)
        finally:
            slot.free()

    def _check(self, request: Request) -> None:
        """Whether prompt and answer fit the context."""
        length = len(request.prompt)
        if length == 0:
            raise RpamError(
                f"{self.path}: the prompt of {request.key} is empty; ask something, or leave the question out."
            )
        if self.context is not None and length + request.max_tokens > self.context:
            raise RpamError(
                f"{self.path}: the prompt of {request.key} has {length} tokens and its answer may have "
                f"{request.max_tokens}, the context has only {self.context}; raise `context`, or lower `max_tokens`."
            )

    def _fail(self, status: int) -> None:
        raise RpamError(
            f"{self.path}: llama.cpp failed to decode (status {status}; {last_log_line()}); "
            "run it again, and with fewer `parallel`."
        )

    def _advance(self, decoder: Decoder, slot: Slot, row: int) -> bool:
        """Draw the slot's next token; whether that ends it."""
        token = llama_cpp.llama_sampler_sample(slot.sampler, decoder.context, row)
        slot.token_ids.append(token)
        if slot.request.logprobs:
            logits = decoder.logits(row, self.vocabulary_size).astype(np.float64)
            top = logits.max()
            slot.logprobs.append(float(logits[token] - top - np.log(np.exp(logits - top).sum())))
        return self._ends(token) or len(slot.token_ids) == slot.request.max_tokens

    def _ends(self, token: int) -> bool:
        return bool(llama_cpp.llama_vocab_is_eog(self._vocab, token))

    def _completion(self, slot: Slot) -> Completion:
        generated = len(slot.token_ids)
        ended = generated > 0 and self._ends(slot.token_ids[-1])
        kept = tuple(slot.token_ids[: generated - ended])
        return Completion(
            slot.request.key,
            kept,
            tuple(self._piece(token) for token in kept),
            "stop" if ended else "length",
            generated,
            time.monotonic() - slot.began,
            tuple(slot.logprobs[: len(kept)]) if slot.request.logprobs else None,
        )

    def _new_context(self, parallel: int, room: int) -> Any:
        size = parallel * room
        return new_context(
            self._model,
            self.path,
            "lower `parallel` or `max_tokens`",
            n_seq_max=parallel,
            n_ctx=size,
            n_batch=size,
            n_threads=self.threads,
            n_threads_batch=self.threads,
        )

    def _piece(self, token: int) -> bytes:
        if token not in self._pieces:
            self._pieces[token] = llama_library.token_bytes(self._vocab, token)
        return self._pieces[token]

    def _named_token(self, name: str) -> str:
        number = self.metadata(f"tokenizer.ggml.{name}_token_id")
        return "" if number is None else self._piece(int(number)).decode("utf-8", errors="replace")
