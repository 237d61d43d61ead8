"""How far a quantized file's next-token distributions are from those of the unquantized one.

    KL(base || file) = sum_t p_base(t) (log p_base(t) - log p_file(t)),  in nats, a position

The exact sum over the vocabulary; llama.cpp's own tool keeps the base's log-probabilities in 16 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quant.engines.llama_cpp import LlamaCppEngine
from quant.logits import sequence_logits

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Divergence:
    """Over all positions compared.

    Attributes:
        positions: How many.
        mean: Mean KL divergence in nats.
        error: Standard error of the mean.
        median: Median.
        p99: 99th percentile.
        largest: Largest one.
        same_top: Share of positions where both find the same token likeliest.
    """

    positions: int
    mean: float
    error: float
    median: float
    p99: float
    largest: float
    same_top: float


def divergence(
    base: Path,
    files: Sequence[Path],
    sequences: Sequence[Sequence[int]],
    starts: Sequence[int],
    threads: int = 2,
    step: Callable[[str], None] = lambda note: None,
) -> list[Divergence]:
    """Compare files with `base`, a sequence at a time.

    Args:
        base: The unquantized GGUF file.
        files: Quantized ones of the same model.
        sequences: Token ids: prompt and answer.
        starts: Position of each answer's first token; what predicts the answer is compared.
        threads: CPU threads.
        step: Called after each file and sequence.

    Returns:
        One for each file.
    """
    found = []
    with LlamaCppEngine(base, threads=threads) as reference:
        for file in files:
            klds, same = [], []
            with LlamaCppEngine(file, threads=threads) as engine:
                for tokens, start in zip(sequences, starts, strict=True):
                    pairs = zip(sequence_logits(reference, tokens), sequence_logits(engine, tokens), strict=True)
                    own = [_compare(a, b) for a, b in pairs]
                    compared = slice(start - 1, len(tokens) - 1)
                    klds.append(np.concatenate([k for k, _ in own])[compared])
                    same.append(np.concatenate([s for _, s in own])[compared])
                    step(file.name)
            found.append(summarize(np.concatenate(klds), np.concatenate(same)))
    return found


def summarize(klds: Floats, same: NDArray[np.bool_]) -> Divergence:
    """Figures of KL divergences and of agreement, one a position."""
    error = float(klds.std(ddof=1) / np.sqrt(len(klds))) if len(klds) > 1 else float("nan")
    middle, high = np.percentile(klds, [50, 99])
    return Divergence(
        len(klds), float(klds.mean()), error, float(middle), float(high), float(klds.max()), float(same.mean())
    )


def _compare(base: np.ndarray, other: np.ndarray) -> tuple[Floats, NDArray[np.bool_]]:
    """KL divergence and agreement of each position, of logits [positions, vocabulary]."""
    p, q = _log_probabilities(base), _log_probabilities(other)
    kld: Floats = (np.exp(p) * (p - q)).sum(-1)
    return np.maximum(kld, 0.0), base.argmax(-1) == other.argmax(-1)


def _log_probabilities(logits: np.ndarray) -> Floats:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    result: Floats = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result
