"""Accuracy and tokens of one model on one question set, by level, from an engine.

Every completion becomes one line of a records file as soon as it ends; an interrupted evaluation
goes on with the questions that have no line yet.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from quant.engines import Completion, Engine, Request
from quant.tasks.grader import GRADER_VERSION, THINK_CLOSE, THINK_OPEN, grade
from quant.tasks.questions import Question
from rpam_lite.checkpoint.files import keep_partial

RECORD_VERSION = 2
BLOCKS = ("none", "closed", "open")  # what can become of a think block


@dataclass(frozen=True)
class Record:
    """One graded completion. Tokens are counted as the engine generated them; `think_block` is one of BLOCKS."""

    key: str
    level: int
    correct: bool
    reason: str
    tokens: int
    think_tokens: int
    think_block: str
    finish_reason: str
    text: str
    version: int = RECORD_VERSION
    grader: int = GRADER_VERSION


def evaluate(
    engine: Engine,
    questions: Sequence[Question],
    records_file: Path,
    max_tokens: int,
    prompts: Mapping[str, tuple[int, ...]] | None = None,
    on_record: Callable[[], None] = lambda: None,
) -> list[Record]:
    """Answer every question greedily, once, and grade it.

    Args:
        engine: Runs the model.
        questions: What to ask.
        records_file: JSON lines, one a completion; absent until all are there.
        max_tokens: Generated tokens after which an answer counts as truncated.
        prompts: Token ids by question key, where they shall not come from the engine's own template.
        on_record: Called after each new completion.

    Returns:
        Records in the order of `questions`.
    """
    by_key = {q.key: q for q in questions}

    def generate(missing: list[str]) -> Iterable[dict[str, Any]]:
        requests = [
            Request(key, prompts[key] if prompts else engine.chat_prompt(by_key[key].question), max_tokens)
            for key in missing
        ]
        for completion in engine.generate(requests):
            record = to_record(completion, by_key[completion.key])
            on_record()
            yield asdict(record)

    return [Record(**row) for row in keep_partial(records_file, list(by_key), generate)]


def to_record(completion: Completion, question: Question) -> Record:
    """Grade one completion."""
    verdict = grade(completion.text, question.answer, truncated=completion.finish_reason == "length")
    think_tokens, block = think_block(completion.pieces)
    return Record(
        key=question.key,
        level=question.level,
        correct=verdict.correct,
        reason=verdict.reason,
        tokens=completion.generated,
        think_tokens=think_tokens,
        think_block=block,
        finish_reason=completion.finish_reason,
        text=completion.text,
    )


def think_block(pieces: Sequence[bytes]) -> tuple[int, str]:
    """Tokens inside the think block (all that follow where it never closes), and what became of it.

    A block that closes without having been opened was opened by the prompt (R1, Qwen3-Thinking).
    """
    text = b""
    opened_at = None
    for i, piece in enumerate(pieces):
        text += piece
        if THINK_CLOSE.encode() in text:
            return i if opened_at is None else i - opened_at - 1, "closed"
        if opened_at is None and THINK_OPEN.encode() in text:
            opened_at = i
    return (0, "none") if opened_at is None else (len(pieces) - opened_at - 1, "open")


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


def read_records(path: Path) -> list[Record]:
    """Records of a finished evaluation."""
    return [Record(**json.loads(line)) for line in path.read_text(encoding="utf-8").split("\n") if line]
