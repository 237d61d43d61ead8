"""Reading one sequence in llama.cpp, a few tokens a pass, without generating: for its logits or hidden states."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import llama_cpp

from quant.engines.llama_cpp import LlamaCppEngine
from quant.engines.llama_library import last_log_line, new_context
from rpam_lite.errors import RpamError

CHUNK = 64  # tokens a pass


@dataclass(frozen=True)
class Reader:
    """A context for one sequence at a time.

    Attributes:
        engine: The loaded file.
        context: llama.cpp's context, which holds the outputs of the last pass.
        batch: llama.cpp's batch of CHUNK tokens.
    """

    engine: LlamaCppEngine
    context: Any
    batch: Any

    def read(self, tokens: Sequence[int], first: int = 0) -> Iterator[int]:
        """Read a sequence from its beginning.

        Args:
            tokens: Token ids.
            first: Position from which outputs are wanted.

        Yields:
            After every pass the positions that have outputs in the context.

        Raises:
            RpamError: llama.cpp fails to decode.
        """
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        for start in range(0, len(tokens), CHUNK):
            part = tokens[start : start + CHUNK]
            for row, token in enumerate(part):
                self.batch.token[row], self.batch.pos[row] = token, start + row
                self.batch.n_seq_id[row], self.batch.seq_id[row][0] = 1, 0
                self.batch.logits[row] = start + row >= first
            self.batch.n_tokens = len(part)
            if (status := llama_cpp.llama_decode(self.context, self.batch)) != 0:
                raise RpamError(
                    f"{self.engine.path}: llama.cpp failed to decode (status {status}; {last_log_line()}); try again."
                )
            yield max(0, start + len(part) - max(first, start))


@contextmanager
def open_reader(engine: LlamaCppEngine, longest: int, **settings: Any) -> Iterator[Reader]:
    """A reader of sequences.

    Args:
        engine: The loaded file.
        longest: Tokens of the longest sequence.
        **settings: Of llama.cpp's context, by its names.

    Raises:
        RpamError: llama.cpp can't make the context (memory).
    """
    asked = {
        "n_ctx": -(-longest // 256) * 256,
        "n_batch": CHUNK,
        "n_ubatch": CHUNK,
        "n_seq_max": 1,
        "n_threads": engine.threads,
        "n_threads_batch": engine.threads,
    }
    context = new_context(engine.handle, engine.path, "shorten the texts", **asked | settings)
    batch = llama_cpp.llama_batch_init(CHUNK, 0, 1)
    try:
        yield Reader(engine, context, batch)
    finally:
        llama_cpp.llama_batch_free(batch)
        llama_cpp.llama_free(context)
