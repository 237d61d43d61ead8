"""Divergence and perplexity as llama.cpp's `llama-perplexity --kl-divergence` defines them.

For comparing with published figures. Definitions from tools/perplexity/perplexity.cpp (llama.cpp of
llama-cpp-python 0.3.36): the text is tokenized whole, special tokens as plain text; cut in windows of
`n_ctx` tokens, the remainder dropped; the first token of each window becomes BOS where the model adds
one; positions n_ctx / 2 to n_ctx - 2 are scored. The base's log-probabilities pass through 16 bits.
"""

from __future__ import annotations

from collections.abc import Sequence

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from quant.engines.llama_cpp import LlamaCppEngine
from rpam_lite.errors import RpamError

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
_RANGE = np.float32(16)  # nats below the likeliest token under which the base's logits are all one
_STEPS = np.float32(65535)


def text_windows(engine: LlamaCppEngine, text: str, n_ctx: int = 512) -> tuple[list[list[int]], list[int]]:
    """Windows of a text as the tool scores them.

    Args:
        engine: The loaded file, for its tokenizer.
        text: What is scored.
        n_ctx: Tokens of a window.

    Returns:
        Token ids of each window, and the first position in it whose token is scored: `sequences` and `starts` of
        `divergence.compare`.

    Raises:
        RpamError: The text is shorter than two windows, or the model ends every text with EOS.
    """
    vocab = llama_cpp.llama_model_get_vocab(engine.handle)
    if llama_cpp.llama_vocab_get_add_eos(vocab):
        raise RpamError(f"{engine.path}: puts EOS after every text, which llama.cpp's perplexity does not allow.")
    data = text.encode("utf-8")
    ids = (llama_cpp.llama_token * (len(data) + 8))()
    count = llama_cpp.llama_tokenize(vocab, data, len(data), ids, len(ids), True, False)
    bos = llama_cpp.llama_vocab_bos(vocab) if llama_cpp.llama_vocab_get_add_bos(vocab) else None
    return windows(list(ids[:count]), n_ctx, bos)


def windows(tokens: Sequence[int], n_ctx: int = 512, bos: int | None = None) -> tuple[list[list[int]], list[int]]:
    """`text_windows` of tokens.

    Args:
        tokens: Token ids of the whole text, BOS first where the model adds it.
        n_ctx: Tokens of a window.
        bos: Token put in place of each window's first; None where the model adds none.
    """
    if n_ctx < 4:
        raise RpamError(f"a window of {n_ctx} tokens has no second half to score; take the usual 512.")
    if len(tokens) < 2 * n_ctx:
        raise RpamError(
            f"the text has {len(tokens)} tokens and windows of {n_ctx} need at least {2 * n_ctx}; "
            "give more text or smaller windows."
        )
    found = [list(tokens[i * n_ctx : (i + 1) * n_ctx]) for i in range(len(tokens) // n_ctx)]
    if bos is not None:
        found = [[bos, *window[1:]] for window in found]
    return found, [n_ctx // 2 + 1] * len(found)


def stored_log_probabilities(logits: np.ndarray) -> tuple[NDArray[np.uint16], Singles, Singles]:
    """The base's log-probabilities as the tool writes them: steps [positions, vocabulary], scale and least [positions].

    A log-probability is read back as scale * steps + least, in float32. Logits more than 16 below the largest
    are stored as if they were 16 below.
    """
    top = logits.max(-1, keepdims=True)
    low = np.maximum(logits.min(-1, keepdims=True), top - _RANGE)
    least = low - top - _log_sum(logits, top)
    scale = (top - low) / _STEPS
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale > 0)
    steps = np.where(logits > low, np.rint(inverse * (logits - low)), 0).astype(np.uint16)
    return steps, scale[:, 0], least[:, 0]


def compare_rows(
    base: np.ndarray, other: np.ndarray, following: NDArray[np.int64]
) -> tuple[Floats, NDArray[np.bool_], Floats, Floats]:
    """As `divergence.compare_rows`, with the tool's float32 arithmetic; only its sum over the vocabulary is float64.

    Tokens whose stored probability is not above e^-16 are left out of the sum, which can therefore fall below 0.
    """
    steps, scale, least = stored_log_probabilities(base)
    log_p = scale[:, None] * steps + least[:, None]
    top = other.max(-1, keepdims=True)
    log_sum = _log_sum(other, top)
    rows = np.arange(len(base))
    nll = (top + log_sum)[:, 0] - other[rows, following]
    terms = np.exp(log_p) * (log_p - other + (top + log_sum))
    kld = np.where(log_p > -_RANGE, terms, np.float32(0)).sum(-1, dtype=np.float64)
    same = log_p.argmax(-1) == other.argmax(-1)
    return kld, same, nll.astype(np.float64), -log_p[rows, following].astype(np.float64)


def _log_sum(logits: np.ndarray, top: np.ndarray) -> Singles:
    """Log of the sum of exp(logits - top), [positions, 1]."""
    total = np.exp(logits - top).sum(-1, dtype=np.float64, keepdims=True)
    found: Singles = np.log(total).astype(np.float32)
    return found
