"""Accuracy and tokens over a set of records, by level."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quant.records import BLOCKS, Record


@dataclass(frozen=True)
class BlockSummary:
    """Answers whose think block ended in one way: their share, and their mean generated tokens."""

    share: float
    tokens: float | None


@dataclass(frozen=True)
class Summary:
    """Means over a set of records. Shares are between 0 and 1; `blocks` has one entry for each of BLOCKS."""

    questions: int
    accuracy: float
    tokens: float
    truncated: float
    long: float
    blocks: dict[str, BlockSummary]


def summarize(records: Sequence[Record], long_think_tokens: int) -> Summary:
    """Accuracy, mean generated tokens, truncated share and share of long answers.

    A long answer is one with at least `long_think_tokens` tokens in its think block.
    """
    n = len(records)
    return Summary(
        questions=n,
        accuracy=sum(r.correct for r in records) / n,
        tokens=sum(r.tokens for r in records) / n,
        truncated=sum(r.finish_reason == "length" for r in records) / n,
        long=sum(r.think_tokens >= long_think_tokens for r in records) / n,
        blocks={block: _of_block([r for r in records if r.think_block == block], n) for block in BLOCKS},
    )


def _of_block(records: Sequence[Record], all_records: int) -> BlockSummary:
    tokens = sum(r.tokens for r in records) / len(records) if records else None
    return BlockSummary(len(records) / all_records, tokens)


def summarize_by_level(records: Sequence[Record], long_think_tokens: int) -> dict[int, Summary]:
    """`summarize` for each difficulty level, ascending."""
    levels = sorted({r.level for r in records})
    return {level: summarize([r for r in records if r.level == level], long_think_tokens) for level in levels}
