"""How far a model's next-token distributions are from those of another with the same vocabulary.

    KL(base || other) = sum_t p_base(t) (log p_base(t) - log p_other(t)),  in nats, a position

The exact sum over the vocabulary, in float64; llama.cpp's own tool keeps the base's log-probabilities in
16 bits and leaves out what is unlikely, and `llama_compat` does as it does (llama_compat.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quant import llama_compat as tool
from quant.logits import LogitsModel, open_model
from rpam_lite.errors import RpamError

Floats = NDArray[np.float64]
_ROWS = 8  # positions compared at once: their float64 copies stay small


@dataclass(frozen=True)
class Scores:
    """One value a position compared.

    Attributes:
        kld: KL divergence in nats.
        same: Whether both find the same token likeliest.
        nll: Negative log-likelihood that the model gives the token that follows, in nats.
        base_nll: The base's.
    """

    kld: Floats
    same: NDArray[np.bool_]
    nll: Floats
    base_nll: Floats


@dataclass(frozen=True)
class Divergence:
    """Over all positions compared.

    Attributes:
        positions: How many.
        mean: Mean KL divergence in nats.
        error: Standard error of the mean.
        median: Median.
        p99: 99th percentile; p1, p5, p10, p90, p95 alike, and p99_9 the 99.9th.
        largest: Largest one.
        same_top: Share of positions where both find the same token likeliest.
        same_top_error: Its standard error, sqrt(p (1 - p) / (n - 1)).
    """

    positions: int
    mean: float
    error: float
    median: float
    p99: float
    largest: float
    same_top: float
    same_top_error: float
    p1: float
    p5: float
    p10: float
    p90: float
    p95: float
    p99_9: float


@dataclass(frozen=True)
class Perplexity:
    """exp of the mean negative log-likelihood of the tokens that follow.

    Attributes:
        positions: How many tokens.
        value: The perplexity.
        nll: Mean negative log-likelihood in nats.
        nll_error: Its standard error; that of the perplexity is `value` times as large.
    """

    positions: int
    value: float
    nll: float
    nll_error: float


def divergence(
    base: Path,
    files: Sequence[Path],
    sequences: Sequence[Sequence[int]],
    starts: Sequence[int],
    threads: int = 2,
    step: Callable[[str], None] = lambda note: None,
    llama_compat: bool = False,
) -> list[Divergence]:
    """Compare models with `base`, a sequence at a time.

    Args:
        base: The unquantized model: a GGUF file, or a Hugging Face folder.
        files: The others, GGUF files or folders.
        sequences: Token ids: prompt and answer; or windows of a text (`llama_compat.windows`).
        starts: Position of each answer's first token; what predicts the answer is compared.
        threads: CPU threads.
        step: Called after each file and sequence.
        llama_compat: Compute as `llama-perplexity --kl-divergence` does.

    Returns:
        One for each file.

    Raises:
        RpamError: A model can't be loaded, two have different vocabularies, or nothing is left to compare.
    """
    found = []
    with open_model(base, threads, not llama_compat) as reference:
        for file in files:
            with open_model(file, threads, not llama_compat) as model:
                scores = compare(reference, model, sequences, starts, partial(step, file.name), llama_compat)
            found.append(summarize(scores.kld, scores.same))
    return found


def compare(
    base: LogitsModel,
    other: LogitsModel,
    sequences: Sequence[Sequence[int]],
    starts: Sequence[int],
    step: Callable[[], None] = lambda: None,
    llama_compat: bool = False,
) -> Scores:
    """Score every position that predicts a token of an answer, some positions in memory at a time.

    Args:
        base: What is compared with.
        other: What is compared.
        sequences: As in `divergence`.
        starts: As in `divergence`.
        step: Called after each sequence.
        llama_compat: As in `divergence`.

    Raises:
        RpamError: The vocabularies differ, nothing is left to compare, or logits hold NaN.
    """
    if base.vocabulary_size != other.vocabulary_size:
        raise RpamError(
            f"{other.name} has a vocabulary of {other.vocabulary_size} tokens and {base.name} one of "
            f"{base.vocabulary_size}; compare models of one vocabulary."
        )
    score = tool.compare_rows if llama_compat else compare_rows
    parts = []
    for number, (tokens, start) in enumerate(zip(sequences, starts, strict=True), 1):
        if not 1 <= start < len(tokens):
            raise RpamError(
                f"sequence {number} of {len(tokens)} tokens can't be compared from token {start} on; "
                "give a prompt and an answer of at least one token each."
            )
        place = start - 1
        # The last token is read although what it predicts is not known: flash attention rounds otherwise, the
        # number of rows being another, and llama.cpp's tool reads it.
        for p, q in zip(base.logits(tokens, place), other.logits(tokens, place), strict=True):
            following = np.asarray(tokens[place + 1 : place + 1 + len(p)])
            for row in range(0, len(following), _ROWS):
                some = slice(row, min(row + _ROWS, len(following)))
                parts.append(score(p[some], q[some], following[some]))
            place += len(p)
        step()
    if not parts:
        raise RpamError(f"there is nothing to compare {other.name} on; give at least one sequence of token ids.")
    kld, same, nll, base_nll = (np.concatenate(column) for column in zip(*parts, strict=True))
    if not np.isfinite(kld).all():
        raise RpamError(f"{base.name} or {other.name} gives logits that are inf or NaN; export it again.")
    return Scores(kld, same, nll, base_nll)


def summarize(klds: Floats, same: NDArray[np.bool_]) -> Divergence:
    """Figures of KL divergences and of agreement, one a position."""
    n, share = len(klds), float(same.mean())
    p1, p5, p10, middle, p90, p95, p99, p99_9 = map(float, np.percentile(klds, [1, 5, 10, 50, 90, 95, 99, 99.9]))
    return Divergence(
        positions=n,
        mean=float(klds.mean()),
        error=_error(klds),
        median=middle,
        p99=p99,
        largest=float(klds.max()),
        same_top=share,
        same_top_error=float(np.sqrt(share * (1 - share) / (n - 1))) if n > 1 else float("nan"),
        p1=p1,
        p5=p5,
        p10=p10,
        p90=p90,
        p95=p95,
        p99_9=p99_9,
    )


def perplexity(nll: Floats) -> Perplexity:
    """Perplexity of negative log-likelihoods, one a position."""
    mean = float(nll.mean())
    return Perplexity(len(nll), float(np.exp(mean)), mean, _error(nll))


def log_perplexity_ratio(scores: Scores) -> tuple[float, float]:
    """ln(PPL(other) / PPL(base)) and its standard error, taken over the same positions and so far below either's."""
    difference = scores.nll - scores.base_nll
    return float(difference.mean()), _error(difference)


def compare_rows(
    base: np.ndarray, other: np.ndarray, following: NDArray[np.int64]
) -> tuple[Floats, NDArray[np.bool_], Floats, Floats]:
    """Kld, same, nll and base_nll of each position, of logits [positions, vocabulary] and the tokens that follow."""
    p, q = base.astype(np.float64), other.astype(np.float64)
    p -= p.max(-1, keepdims=True)
    q -= q.max(-1, keepdims=True)
    p_exp, q_sum = np.exp(p), np.exp(q).sum(-1)
    p_sum = p_exp.sum(-1)
    rows, log_ratio = np.arange(len(p)), np.log(q_sum) - np.log(p_sum)
    nll, base_nll = np.log(q_sum) - q[rows, following], np.log(p_sum) - p[rows, following]
    p -= q
    p_exp *= p
    # Below the rounding of float64 the sum may come out negative.
    kld = np.maximum(p_exp.sum(-1) / p_sum + log_ratio, 0.0)
    return kld, base.argmax(-1) == other.argmax(-1), nll, base_nll


def _error(values: Floats) -> float:
    """Standard error of the mean."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")
