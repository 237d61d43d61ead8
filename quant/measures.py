"""Accuracy, tokens and think blocks of one model, over questions with several samples each.

Everything comes as values [questions] or [questions, samples] in question order, so that any of it can
be handed to `statistics.interval` or `statistics.paired_difference`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from quant.records import BLOCKS, Record
from quant.statistics import DRAWS, Floats, Interval, interval, ratio
from rpam_lite.errors import RpamError


@dataclass(frozen=True)
class Answers:
    """Records of one model by question. All arrays but `levels` are [questions, samples].

    Attributes:
        questions: Keys.
        levels: Difficulty of each question, int [questions]; 0 where none is given.
        correct: 1 or 0.
        tokens: Generated.
        think_tokens: Those inside the think block.
        truncated: Whether the answer reached the limit of tokens.
        blocks: What became of the think block, as an index into BLOCKS.
    """

    questions: tuple[str, ...]
    levels: NDArray[np.int64]
    correct: Floats
    tokens: Floats
    think_tokens: Floats
    truncated: Floats
    blocks: NDArray[np.int64]

    @property
    def samples(self) -> int:
        """Answers to each question."""
        return int(self.correct.shape[1])


def by_question(records: Sequence[Record]) -> Answers:
    """Group records, questions in order of their first record.

    Raises:
        RpamError: No records, or questions with different numbers of samples.
    """
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record.question, []).append(record)
    if not groups:
        raise RpamError("there are no records to measure; answer some questions first.")
    for (first, ours), (second, theirs) in pairwise(groups.items()):
        if len(ours) != len(theirs):
            raise RpamError(
                f"question {first} has {len(ours)} samples and question {second} has {len(theirs)}; "
                "every question needs the same number."
            )
    rows = list(groups.values())
    return Answers(
        questions=tuple(groups),
        levels=np.array([row[0].level for row in rows], dtype=np.int64),
        correct=np.array([[r.correct for r in row] for row in rows], dtype=np.float64),
        tokens=np.array([[r.tokens for r in row] for row in rows], dtype=np.float64),
        think_tokens=np.array([[r.think_tokens for r in row] for row in rows], dtype=np.float64),
        truncated=np.array([[r.finish_reason == "length" for r in row] for row in rows], dtype=np.float64),
        blocks=np.array([[BLOCKS.index(r.think_block) for r in row] for row in rows], dtype=np.int64),
    )


def require_same_questions(first: Answers, *others: Answers) -> None:
    """Check that all answer the same questions in the same order.

    Raises:
        RpamError: They don't.
    """
    for other in others:
        if len(first.questions) != len(other.questions):
            raise RpamError(
                f"one model answered {len(first.questions)} questions and another {len(other.questions)}; "
                "compare models on the same questions."
            )
        for number, (a, b) in enumerate(zip(first.questions, other.questions, strict=True), 1):
            if a != b:
                raise RpamError(
                    f"question number {number} is {a} for one model and {b} for another; "
                    "compare models on the same questions in the same order."
                )


def pass_at_k(correct: Floats, k: int) -> Floats:
    """Probability that at least one of k samples is right, for each question.

    The unbiased estimator 1 - C(n - c, k) / C(n, k) of n samples, c of them right (Chen et al. 2021,
    arXiv 2107.03374, equation 1).

    Args:
        correct: [questions, samples].
        k: From 1 to the number of samples.

    Raises:
        RpamError: `k` is outside.
    """
    n = correct.shape[1]
    if not 1 <= k <= n:
        raise RpamError(f"pass@{k} can't be estimated from {n} samples a question; k must be from 1 to {n}.")
    wrong = n - correct.sum(1, keepdims=True)
    # The product of (wrong - i) / (n - i) is 0 as soon as one factor is: fewer than k are wrong.
    i = np.arange(k)
    missed: Floats = np.prod(np.maximum(wrong - i, 0.0) / (n - i), axis=1)
    return 1.0 - missed


def per_correct(answers: Answers, values: Floats) -> Floats:
    """Columns [questions, 2] whose `ratio` is the mean of `values` [questions, samples] over correct answers only."""
    return np.stack([(answers.correct * values).mean(1), answers.correct.mean(1)], axis=1)


def accuracy_within(answers: Answers, budgets: Sequence[float], think_only: bool = False) -> Floats:
    """Share of answers that are right within a budget: [questions, budgets]; its mean over questions is the curve.

    OAA_t of OptimalThinkingBench (arXiv 2508.13141) where `think_only`.

    Args:
        answers: Of the model.
        budgets: Most tokens that a right answer may have.
        think_only: Count the tokens inside the think block, else all that were generated.
    """
    spent = answers.think_tokens if think_only else answers.tokens
    within = spent[:, :, None] <= np.asarray(budgets, dtype=np.float64)
    found: Floats = (answers.correct[:, :, None] * within).mean(1)
    return found


def budget_area(answers: Answers, largest: float, smallest: float | None = None, think_only: bool = False) -> Floats:
    """Area under `accuracy_within`, between 0 and 1, for each question; 1 if all is right at no cost.

    Without `smallest`: over t from 0 to `largest`, divided by `largest`; with `think_only` it is AUC_OAA of
    OptimalThinkingBench (arXiv 2508.13141). With `smallest`: over log t from `smallest` to `largest`, divided by
    log(largest / smallest), so that every doubling of the budget counts the same. The curve is a staircase, so the
    integral is taken exactly: a right answer of n tokens adds the share of budgets that are at least n.

    Raises:
        RpamError: The bounds are not in order.
    """
    if not (largest > 0 and (smallest is None or 0 < smallest < largest)):
        low = 0 if smallest is None else smallest
        raise RpamError(f"an area over budgets from {low} to {largest} tokens is not defined; give them in order.")
    spent = answers.think_tokens if think_only else answers.tokens
    if smallest is None:
        share = 1 - spent / largest
    else:
        share = np.log(largest / np.maximum(spent, smallest)) / np.log(largest / smallest)
    found: Floats = (answers.correct * np.clip(share, 0, 1)).mean(1)
    return found


def measure(
    answers: Answers, clusters: Sequence[str] | None = None, seed: int = 0, draws: int = DRAWS
) -> dict[str, Interval]:
    """What one model does, with bootstrap intervals over questions.

    Args:
        answers: Of the model.
        clusters: Problem behind each question, see `statistics.interval`.
        seed: Of the bootstrap.
        draws: Of the bootstrap.

    Returns:
        pass@1, pass@k for k = all samples, tokens, think_tokens, correct_tokens (correct answers only),
        truncated, and the shares of think blocks: block_none, block_closed, block_open.
    """

    def of(values: Floats) -> Interval:
        return interval(values, clusters=clusters, seed=seed, draws=draws)

    k = answers.samples
    found = {"pass@1": of(answers.correct)} | {f"pass@{k}": of(pass_at_k(answers.correct, k))}
    found |= {"tokens": of(answers.tokens), "think_tokens": of(answers.think_tokens)}
    found["correct_tokens"] = interval(per_correct(answers, answers.tokens), ratio, clusters, seed, draws)
    found["truncated"] = of(answers.truncated)
    return found | {f"block_{name}": of((answers.blocks == i).astype(np.float64)) for i, name in enumerate(BLOCKS)}
