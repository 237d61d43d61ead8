"""llama.cpp through its C API, many sequences decoded side by side.

llama-cpp-python's high-level `Llama` decodes one sequence at a time. Here a fixed number of slots
share one batch: each step decodes one token of every running sequence, and slots that have ended
are given the next requests.
"""

from __future__ import annotations

import ctypes
import hashlib
import signal
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import llama_cpp
from jinja2.exceptions import TemplateError
from llama_cpp.llama_chat_format import Jinja2ChatFormatter

from quant.engines.base import Completion, Request, Sampling
from rpam_lite.errors import RpamError

_log_tail: deque[str] = deque(maxlen=20)


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def _keep_log(level: int, text: bytes, user_data: ctypes.c_void_p) -> None:
    """llama.cpp writes to stderr otherwise; the last lines are kept for error messages."""
    _log_tail.append(text.decode("utf-8", errors="replace"))


@contextmanager
def _interrupts_wait() -> Iterator[None]:
    """Let Ctrl-C wait until llama.cpp returns: raised inside the log function it would be dropped without a word."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        raise KeyboardInterrupt


class _Slot:
    """One running sequence: what it still has to decode, and what it has generated."""

    def __init__(self, sequence: int, request: Request) -> None:
        self.sequence, self.request = sequence, request
        self.pending = request.prompt
        self.position = 0
        self.row: int | None = None  # of its last token in the batch, until the next one is drawn
        self.token_ids: list[int] = []

    @cached_property
    def sampler(self) -> Any:
        """The request's sampler chain; it lives in llama.cpp until `free`."""
        return _sampler(self.request.sampling)

    def free(self) -> None:
        """Free the sampler."""
        llama_cpp.llama_sampler_free(self.sampler)


_IDLE = Request("", (0,), 1)


class LlamaCppEngine:
    """Runs one GGUF file on the CPU, or on the GPU that llama-cpp-python was built for.

    Args:
        path: GGUF file.
        parallel: Sequences decoded side by side.
        threads: CPU threads.

    Raises:
        RpamError: The file is missing or llama.cpp can't load it.
    """

    def __init__(self, path: Path, parallel: int = 16, threads: int = 2) -> None:
        if not path.is_file():
            raise RpamError(f"{path}: no such GGUF file.")
        llama_cpp.llama_log_set(_keep_log, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        _log_tail.clear()
        self.path, self.parallel, self.threads = path, parallel, threads
        self.name = path.stem
        with _interrupts_wait():
            model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        if model is None:
            raise RpamError(f"{path}: llama.cpp can't load it ({_last_log_line()}).")
        self._model = model
        self._vocab = llama_cpp.llama_model_get_vocab(model)
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
    def vocabulary_size(self) -> int:
        """Tokens, padding included."""
        return int(llama_cpp.llama_vocab_n_tokens(self._vocab))

    def metadata(self, key: str) -> str | None:
        """One metadata value of the file as text; None if it has no such key."""
        size = 1 << 16
        buffer = ctypes.create_string_buffer(size)
        length = llama_cpp.llama_model_meta_val_str(self._model, key.encode(), buffer, size)
        return None if length < 0 else buffer.value.decode("utf-8")

    def chat_prompt(self, question: str) -> tuple[int, ...]:
        """Token ids of one user turn in the file's own chat template, ready for an answer.

        Raises:
            RpamError: The file carries no chat template, or the template fails.
        """
        try:
            rendered = self._chat_formatter(messages=[{"role": "user", "content": question}])
        except (TemplateError, ValueError) as error:
            raise RpamError(f"{self.path}: its chat template fails ({error}).") from None
        return self.tokenize(rendered.prompt)

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
        data = text.encode("utf-8")
        ids = (llama_cpp.llama_token * (len(data) + 8))()
        count = llama_cpp.llama_tokenize(self._vocab, data, len(data), ids, len(ids), False, True)
        return tuple(ids[:count])

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """Complete all requests, yielding each as it ends.

        Raises:
            RpamError: The context can't be made (memory), or decoding fails.
        """
        if not requests:
            return
        # Long prompts tend to long answers: started first, they leave no tail of lonely sequences.
        waiting = deque(sorted(requests, key=lambda r: -len(r.prompt)))
        parallel = min(self.parallel, len(requests))
        room = max(len(r.prompt) + r.max_tokens for r in requests)
        context = self._new_context(parallel, room)
        batch = llama_cpp.llama_batch_init(parallel * room, 0, 1)
        slots: dict[int, _Slot] = {}
        try:
            while waiting or slots:
                # A prompt costs a pass of its own, so let some slots gather before the next ones join.
                if waiting and (parallel - len(slots)) * 4 >= parallel:
                    joining = [_Slot(i, waiting.popleft()) for i in range(parallel) if i not in slots and waiting]
                    slots |= {slot.sequence: slot for slot in joining}
                    batched = joining
                else:
                    # llama.cpp decodes sequences in one pass only if their numbers follow each other: an
                    # idle one that decodes a token for nothing is far cheaper than a second pass.
                    batched = [slots.get(i) or _Slot(i, _IDLE) for i in range(min(slots), max(slots) + 1)]
                self._decode(context, batch, batched)
                for slot in list(slots.values()):
                    if slot.row is None:
                        continue
                    completion = self._advance(context, slot)
                    if completion is not None:
                        del slots[slot.sequence]
                        slot.free()
                        yield completion
        finally:
            for slot in slots.values():
                slot.free()
            llama_cpp.llama_batch_free(batch)
            llama_cpp.llama_free(context)

    def _decode(self, context: Any, batch: Any, slots: Sequence[_Slot]) -> None:
        """One pass over the pending tokens of these slots."""
        memory = llama_cpp.llama_get_memory(context)
        row = 0
        for slot in slots:
            if slot.position == 0:
                llama_cpp.llama_memory_seq_rm(memory, slot.sequence, -1, -1)
            for offset, token in enumerate(slot.pending):
                batch.token[row] = token
                batch.pos[row] = slot.position + offset
                batch.n_seq_id[row] = 1
                batch.seq_id[row][0] = slot.sequence
                batch.logits[row] = offset == len(slot.pending) - 1
                row += 1
            slot.row = row - 1
        batch.n_tokens = row
        if (status := llama_cpp.llama_decode(context, batch)) != 0:
            raise RpamError(f"{self.path}: llama.cpp failed to decode (status {status}; {_last_log_line()}).")

    def _advance(self, context: Any, slot: _Slot) -> Completion | None:
        """Draw the slot's next token; its completion if that ends it."""
        token = llama_cpp.llama_sampler_sample(slot.sampler, context, slot.row)
        slot.position += len(slot.pending)
        slot.pending = (token,)
        slot.row = None
        return self._finished(slot, token)

    def _new_context(self, parallel: int, room: int) -> Any:
        params = llama_cpp.llama_context_default_params()
        params.n_seq_max = parallel
        params.n_ctx = parallel * (-(-room // 256) * 256)
        params.n_batch = params.n_ctx
        params.n_threads = params.n_threads_batch = self.threads
        with _interrupts_wait():
            context = llama_cpp.llama_init_from_model(self._model, params)
        if context is None:
            raise RpamError(
                f"{self.path}: llama.cpp can't make a context of {params.n_ctx} tokens ({_last_log_line()}); "
                "lower `parallel` or `max_tokens` in the recipe."
            )
        return context

    def _finished(self, slot: _Slot, token: int) -> Completion | None:
        """The completion if `token` ends it, else None with the token kept."""
        ended = llama_cpp.llama_vocab_is_eog(self._vocab, token)
        if not ended:
            slot.token_ids.append(token)
            if len(slot.token_ids) < slot.request.max_tokens:
                return None
        pieces = tuple(self._piece(t) for t in slot.token_ids)
        generated = len(slot.token_ids) + ended
        return Completion(slot.request.key, tuple(slot.token_ids), pieces, "stop" if ended else "length", generated)

    def _piece(self, token: int) -> bytes:
        if token not in self._pieces:
            buffer = ctypes.create_string_buffer(256)
            length = llama_cpp.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, True)
            self._pieces[token] = buffer.raw[: max(0, length)]
        return self._pieces[token]

    def _named_token(self, name: str) -> str:
        number = self.metadata(f"tokenizer.ggml.{name}_token_id")
        return "" if number is None else self._piece(int(number)).decode("utf-8", errors="replace")


def _sampler(sampling: Sampling) -> Any:
    """A llama.cpp sampler chain in its own order: top-k, top-p, temperature, draw."""
    chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
    if sampling.temperature == 0:
        llama_cpp.llama_sampler_chain_add(chain, llama_cpp.llama_sampler_init_greedy())
        return chain
    for part in (
        llama_cpp.llama_sampler_init_top_k(sampling.top_k),
        llama_cpp.llama_sampler_init_top_p(sampling.top_p, 1),
        llama_cpp.llama_sampler_init_temp(sampling.temperature),
        llama_cpp.llama_sampler_init_dist(sampling.seed),
    ):
        llama_cpp.llama_sampler_chain_add(chain, part)
    return chain


def _last_log_line() -> str:
    lines = [line.strip() for line in "".join(_log_tail).splitlines() if line.strip()]
    return lines[-1] if lines else "llama.cpp gave no reason"
