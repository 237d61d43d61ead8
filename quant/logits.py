"""Logits of a GGUF file on given token ids, as exact as llama.cpp computes: F32 cache, no flash attention."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence

import llama_cpp
import numpy as np

from quant.engines.llama_cpp import LlamaCppEngine
from rpam_lite.errors import RpamError

_F32 = 0  # GGML_TYPE_F32
_CHUNK = 256  # positions whose logits are held at a time


def sequence_logits(engine: LlamaCppEngine, tokens: Sequence[int]) -> Iterator[np.ndarray]:
    """Next-token logits of one sequence, some positions at a time.

    Args:
        engine: The loaded file.
        tokens: Token ids.

    Yields:
        float32 [positions, vocabulary], in order, valid until the next ones are asked for.

    Raises:
        RpamError: llama.cpp can't make the context (memory), or fails to decode.
    """
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = -(-len(tokens) // 256) * 256
    params.n_batch = params.n_ubatch = min(_CHUNK, params.n_ctx)
    params.n_seq_max = 1
    params.type_k = params.type_v = _F32
    params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.n_threads = params.n_threads_batch = engine.threads
    context = llama_cpp.llama_init_from_model(engine.handle, params)
    if context is None:
        raise RpamError(f"{engine.path}: llama.cpp can't make a context of {params.n_ctx} tokens.")
    batch = llama_cpp.llama_batch_init(_CHUNK, 0, 1)
    try:
        for start in range(0, len(tokens), _CHUNK):
            part = tokens[start : start + _CHUNK]
            for row, token in enumerate(part):
                batch.token[row], batch.pos[row] = token, start + row
                batch.n_seq_id[row], batch.seq_id[row][0], batch.logits[row] = 1, 0, True
            batch.n_tokens = len(part)
            if (status := llama_cpp.llama_decode(context, batch)) != 0:
                raise RpamError(f"{engine.path}: llama.cpp failed to decode (status {status}).")
            values = llama_cpp.llama_get_logits(context)
            size = len(part) * engine.vocabulary_size
            found = np.ctypeslib.as_array(ctypes.cast(values, ctypes.POINTER(ctypes.c_float)), (size,))
            yield found.reshape(len(part), engine.vocabulary_size)
    finally:
        llama_cpp.llama_batch_free(batch)
        llama_cpp.llama_free(context)
