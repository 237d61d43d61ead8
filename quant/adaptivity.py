"""How a merged model's length follows what a question needs, measured against its two parents S and L.

Raw length against difficulty says little: both parents write more on harder questions (arXiv 2503.20641,
figure 2). So the merge is placed between its parents on each question,

    a(q) = (log tok_M - log tok_S) / (log tok_L - log tok_S),  clipped to [0, 1],

0 as short as S, 1 as long as L. Shortening all questions alike leaves a(q) flat; an adaptive model has
a(q) rising with difficulty. Difficulties and labels must come from questions that calibrated nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from quant.measures import Answers, pass_at_k, per_correct, require_same_questions
from quant.statistics import DRAWS, Floats, Interval, Statistic, interval, mean, ratio, ratio_of_ratios, resampled
from rpam_lite.errors import RpamError

_BY_DRAW = 1000  # draws of statistics that are computed one draw at a time


def interpolation_index(model: Answers, short: Answers, long: Answers) -> Floats:
    """a(q) of each question, on mean tokens over samples; NaN where S and L have the same."""
    require_same_questions(model, short, long)
    m, s, n = (np.log(np.maximum(a.tokens.mean(1), 1.0)) for a in (model, short, long))
    distance = n - s
    share = np.divide(m - s, distance, out=np.full_like(m, np.nan), where=distance != 0)
    index: Floats = np.clip(share, 0.0, 1.0)
    return index


def difficulty(short: Answers, k: int = 1) -> Floats:
    """Difficulty of each question: its level; where no question has one, 1 - pass@k of S."""
    return short.levels.astype(np.float64) if short.levels.any() else 1.0 - pass_at_k(short.correct, k)


def ranks(values: Floats) -> Floats:
    """Ranks from 1; equal values share the mean of theirs."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    found: Floats = (np.cumsum(count) - (count - 1) / 2)[place]
    return found


def spearman(x: Floats, y: Floats) -> float:
    """Rank correlation; NaN where one of the two is constant."""
    a, b = ranks(x), ranks(y)
    a, b = a - (len(a) + 1) / 2, b - (len(b) + 1) / 2
    square = float((a**2).sum() * (b**2).sum())
    return float((a * b).sum()) / math.sqrt(square) if square > 0 else float("nan")


def slope(x: Floats, y: Floats) -> float:
    """Least-squares slope of y on x, per unit of x; NaN where x is constant."""
    if len(x) == 0 or x.min() == x.max():
        return float("nan")
    spread = x - x.mean()
    return float((spread * y).sum() / (spread**2).sum())


def auroc(scores: Floats, labels: Floats) -> float:
    """Probability that a positive (label 1) scores higher than a negative (0), ties half: U / (n1 n0).

    U is Mann and Whitney's; NaN where one of the two kinds is missing.
    """
    n = int(labels.sum())
    if n in (0, len(labels)):
        return float("nan")
    return float((ranks(scores)[labels == 1].sum() - n * (n + 1) / 2) / (n * (len(labels) - n)))


def long_share(answers: Answers, long_think_tokens: int) -> Floats:
    """Share of each question's answers that are long: at least `long_think_tokens` tokens in the think block."""
    found: Floats = (answers.think_tokens >= long_think_tokens).mean(1)
    return found


def solves(answers: Answers) -> NDArray[np.bool_]:
    """Oracle label of each question: whether the parent answers it rightly in at least half of its samples."""
    found: NDArray[np.bool_] = answers.correct.mean(1) >= 0.5
    return found


def overthink(model: Answers, short: Answers, long_think_tokens: int) -> Floats:
    """P(M long | S solves q) as columns [questions, 2] for `statistics.ratio`."""
    require_same_questions(model, short)
    given = solves(short).astype(np.float64)
    return np.stack([given * long_share(model, long_think_tokens), given], axis=1)


def underthink(model: Answers, long: Answers, long_think_tokens: int) -> Floats:
    """P(M short and wrong | L solves q) as columns [questions, 2] for `statistics.ratio`."""
    require_same_questions(model, long)
    given = solves(long).astype(np.float64)
    missed = ((model.think_tokens < long_think_tokens) * (1.0 - model.correct)).mean(1)
    return np.stack([given * missed, given], axis=1)


def execution(model: Answers, short: Answers, long: Answers, long_think_tokens: int) -> Floats:
    """Right answers of M less those of the parent whose way each takes, L's for a long one, [questions]."""
    require_same_questions(model, short)
    require_same_questions(model, long)
    of_long, of_short = (parent.correct.mean(1, keepdims=True) for parent in (long, short))
    found: Floats = (model.correct - np.where(model.think_tokens >= long_think_tokens, of_long, of_short)).mean(1)
    return found


def macro_length_ratio(tasks: Mapping[str, tuple[Answers, Answers]]) -> float:
    """Mean over tasks of mean tokens of M / mean tokens of L, as arXiv 2503.20641 reports it.

    Args:
        tasks: Answers of M and of L by task.

    Raises:
        RpamError: No tasks, or L generated nothing.
    """
    if not tasks:
        raise RpamError("a macro length ratio needs at least one task; it got none.")
    for name, (model, long) in tasks.items():
        require_same_questions(model, long)
        if long.tokens.sum() == 0:
            raise RpamError(f"{name}: the long parent generated no tokens, so there is no length ratio.")
    return float(np.mean([model.tokens.mean() / long.tokens.mean() for model, long in tasks.values()]))


def measure_adaptivity(
    model: Answers,
    short: Answers,
    long: Answers,
    long_think_tokens: int,
    clusters: Sequence[str] | None = None,
    seed: int = 0,
    draws: int = DRAWS,
) -> dict[str, Interval]:
    """Everything above, with bootstrap intervals over questions.

    Args:
        model: Answers of the merge.
        short: Of the short parent, on the same questions.
        long: Of the long parent, on the same questions.
        long_think_tokens: Think tokens from which an answer counts as long.
        clusters: Problem behind each question, see `statistics.interval`.
        seed: Of the bootstrap.
        draws: Of the bootstrap; at most 1000 for rank statistics.

    Returns:
        length_ratio (all tokens of M by all of L), correct_length_ratio (mean over correct answers of M by that of
        L), index (mean a(q)), index_spearman and index_slope (against difficulty), overthink, underthink, execution,
        and auroc: of M's tokens for the label "L solves it and S does not" against "S solves it"; questions that
        neither solves have no label.

    Raises:
        RpamError: The three did not answer the same questions.
    """
    index = interpolation_index(model, short, long)
    placed = np.isfinite(index)
    against_difficulty = np.stack([difficulty(short), index], axis=1)
    # 1: only L solves it; 0: S does; questions that neither solves have no label.
    label = np.where(solves(short), 0.0, np.where(solves(long), 1.0, np.nan))
    of_correct = np.concatenate([per_correct(a, a.tokens) for a in (model, long)], axis=1)
    columns: dict[str, tuple[Floats, Statistic]] = {
        "length_ratio": (np.stack([model.tokens.mean(1), long.tokens.mean(1)], axis=1), ratio),
        "correct_length_ratio": (of_correct, ratio_of_ratios),
        "index": (np.stack([np.where(placed, index, 0.0), placed], axis=1), ratio),
        "overthink": (overthink(model, short, long_think_tokens), ratio),
        "underthink": (underthink(model, long, long_think_tokens), ratio),
        "execution": (execution(model, short, long, long_think_tokens), mean),
    }
    by_draw: dict[str, tuple[Floats, Callable[[Floats], float]]] = {
        "index_spearman": (against_difficulty, lambda rows: spearman(*_defined(rows))),
        "index_slope": (against_difficulty, lambda rows: slope(*_defined(rows))),
        "auroc": (np.stack([model.tokens.mean(1), label], axis=1), lambda rows: auroc(*_defined(rows))),
    }
    found = {name: interval(v, s, clusters, seed, draws) for name, (v, s) in columns.items()}
    few = min(draws, _BY_DRAW)
    return found | {name: interval(v, resampled(s), clusters, seed, few) for name, (v, s) in by_draw.items()}


def _defined(rows: Floats) -> tuple[Floats, Floats]:
    """The two columns of the rows whose second is a number."""
    kept = rows[np.isfinite(rows[:, 1])]
    return kept[:, 0], kept[:, 1]
