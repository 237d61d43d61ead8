"""Records: one graded completion each, as kept in JSON lines."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from quant.engines import Completion, Request
from quant.tasks.questions import Question
from quant.tasks.task import IN_BOX, Grading
from rpam_lite.checkpoint.files import read_rows, write_text
from rpam_lite.checkpoint.think import THINK_CLOSE, THINK_OPEN
from rpam_lite.errors import RpamError

RECORD_VERSION = 4
BLOCKS = ("none", "closed", "open")  # what can become of a think block


@dataclass(frozen=True)
class Record:
    """One graded completion.

    Attributes:
        key: Question and number of the sample, as "12/0".
        question: Key of the question.
        level: Its difficulty.
        answer: Its gold answer.
        correct: The verdict.
        reason: Why.
        tokens: As the engine generated them.
        think_tokens: Those inside the think block; by its share of the text where an engine tells no tokens.
        think_block: One of BLOCKS.
        finish_reason: "stop" or "length".
        text: What was generated.
        tolerance: Absolute error up to which a number is right.
        path: How the answer was found, see `quant.tasks.grader.Verdict`.
        think_open: Whether the prompt had opened the think block.
        prompt: Hash of the prompt.
        engine: Identity of the engine that generated it.
        sampling: Temperature, top_p, top_k, seed, and max_tokens.
        seconds: As the engine tells.
        version: Of this form.
        grader: Tag of the grader, see `quant.tasks.task.Grading`.
    """

    key: str
    question: str
    level: int
    answer: str
    correct: bool
    reason: str
    tokens: int
    think_tokens: int
    think_block: str
    finish_reason: str
    text: str
    tolerance: float = 0.0
    path: str = ""
    think_open: bool = False
    prompt: str = ""
    engine: str = ""
    sampling: Mapping[str, float] | None = None
    seconds: float = 0.0
    version: int = RECORD_VERSION
    grader: str = IN_BOX.tag


def to_record(
    completion: Completion, question: Question, grading: Grading = IN_BOX, think_open: bool = False
) -> Record:
    """Grade one completion; `think_open` tells that the prompt had opened the think block."""
    think_tokens, block = think_block(completion.pieces, think_open)
    if len(completion.pieces) == 1 and completion.generated > 2:
        think_tokens = round(completion.generated * think_share(completion.text, think_open))
    record = Record(
        key=completion.key,
        question=question.key,
        level=question.level,
        answer=question.answer,
        correct=False,
        reason="",
        think_open=think_open,
        tokens=completion.generated,
        think_tokens=think_tokens,
        think_block=block,
        finish_reason=completion.finish_reason,
        text=completion.text,
        seconds=completion.seconds,
    )
    return regraded(record, question, grading)


def regraded(record: Record, question: Question, grading: Grading) -> Record:
    """The record with the verdict of this grader on this question's gold answer; nothing is generated."""
    verdict = grading.grade(record.text, question, record.finish_reason == "length", record.think_open)
    return replace(
        record,
        level=question.level,
        answer=question.answer,
        tolerance=question.tolerance,
        correct=verdict.correct,
        reason=verdict.reason,
        path=verdict.path,
        grader=grading.tag,
    )


def is_graded(record: Record, question: Question, grading: Grading) -> bool:
    """Whether the record's verdict is that of this grader on this question's gold answer."""
    asked = (question.level, question.answer, question.tolerance, grading.tag)
    return bool(grading.tag) and (record.level, record.answer, record.tolerance, record.grader) == asked


def write_records(file: Path, records: Sequence[Record]) -> None:
    """Write a whole file of records, so that it is whole or as it was."""
    write_text(file, "".join(json.dumps(asdict(record), ensure_ascii=False) + "\n" for record in records))


def prompt_hash(request: Request) -> str:
    """Of the token ids; of the question where a server makes the prompt of it."""
    asked = json.dumps(list(request.prompt) or request.question)
    return hashlib.sha256(asked.encode()).hexdigest()[:16]


def think_block(pieces: Sequence[bytes], opened: bool = False) -> tuple[int, str]:
    """Tokens inside the think block (all that follow where it never closes), and what became of it.

    A block that closes without having been opened was opened by the prompt (R1, Qwen3-Thinking).

    Args:
        pieces: Bytes of each generated token.
        opened: Whether the prompt had opened the block.
    """
    start, end = THINK_OPEN.encode(), THINK_CLOSE.encode()
    opened_at, tail = -1 if opened else None, b""
    for i, piece in enumerate(pieces):
        tail += piece
        if end in tail:
            return i if opened_at is None else max(0, i - opened_at - 1), "closed"
        if opened_at is None and start in tail:
            opened_at = i
        tail = tail[-len(end) :]  # a mark may be spread over pieces
    return (0, "none") if opened_at is None else (len(pieces) - opened_at - 1, "open")


def think_share(text: str, opened: bool = False) -> float:
    """Share of the text's characters that lie inside its think block; `opened` as in `think_block`."""
    before, closed, _ = text.partition(THINK_CLOSE)
    if not closed and not opened and THINK_OPEN not in text:
        return 0.0
    return len(before.rpartition(THINK_OPEN)[2].strip()) / max(1, len(text))


def read_records(file: Path) -> dict[str, Record]:
    """Records of a file, by key.

    Raises:
        RpamError: They are of another version.
    """
    records = {}
    for key, row in read_rows(file).items():
        if row.get("version") != RECORD_VERSION:
            raise RpamError(
                f"{file}: its records are of version {row.get('version')}, this release reads {RECORD_VERSION}; "
                "move the file away."
            )
        records[key] = Record(**row)
    return records


def evaluated(file: Path, questions: int) -> list[Record]:
    """The records that an evaluation of so many questions counted: they stand first, those of earlier ones behind.

    Raises:
        RpamError: They are of another version, or fewer.
    """
    found = list(read_records(file).values())
    if len(found) < questions:
        raise RpamError(
            f"{file}: holds {len(found)} answers, the evaluation beside it {questions} questions; `rpam eval` again."
        )
    return found[:questions]
