"""Records: one graded completion each, kept as JSON lines from the moment it ends.

An interrupted evaluation goes on with the questions that have no line yet, on the same engine or on another.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from quant.engines import Completion, Engine, Request, Sampling
from quant.tasks.grader import GRADER_VERSION, THINK_CLOSE, THINK_OPEN, Verdict, grade
from quant.tasks.questions import Question
from rpam_lite.checkpoint.files import append_rows, read_rows, write_text
from rpam_lite.errors import RpamError

RECORD_VERSION = 3
BLOCKS = ("none", "closed", "open")  # what can become of a think block

# Text, question, whether the text was cut off, whether the prompt had opened the think block -> verdict.
Grade = Callable[[str, Question, bool, bool], Verdict]


def in_box(text: str, question: Question, truncated: bool, think_open: bool) -> Verdict:
    """The grader of a question whose answer is expected in a box."""
    return grade(text, question.answer, truncated, think_open)


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
        path: How the answer was found, see `quant.tasks.grader.Verdict`.
        think_open: Whether the prompt had opened the think block.
        prompt: Hash of the prompt.
        engine: Identity of the engine that generated it.
        sampling: Temperature, top_p, top_k, seed, and max_tokens.
        seconds: As the engine tells.
        version: Of this form.
        grader: Version of the grader.
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
    path: str = ""
    think_open: bool = False
    prompt: str = ""
    engine: str = ""
    sampling: Mapping[str, float] | None = None
    seconds: float = 0.0
    version: int = RECORD_VERSION
    grader: int = GRADER_VERSION


def answer_questions(
    engine: Engine,
    questions: Sequence[Question],
    file: Path,
    max_tokens: int,
    samples: int = 1,
    sampling: Sampling = Sampling(),
    prompts: Mapping[str, tuple[int, ...]] | None = None,
    grade_answer: Grade = in_box,
    on_record: Callable[[], None] = lambda: None,
) -> list[Record]:
    """Answer every question `samples` times and grade the answers; what the file has already is not asked again.

    Every sample has its own seed, a hash of `sampling.seed` and of the sample's key, so that an
    interrupted run draws what an uninterrupted one would have drawn.

    Args:
        engine: Runs the model.
        questions: What to ask.
        file: JSON lines, one a completion, appended as they end. It belongs to one way of asking: what differs in
            sampling, prompts or `max_tokens` needs another file. Verdicts of an older grader are brought up to date.
        max_tokens: Generated tokens after which an answer counts as truncated.
        samples: Answers a question.
        sampling: How tokens are drawn.
        prompts: Token ids by question key, where they shall not come from the engine's own template.
        grade_answer: The grader.
        on_record: Called after each new completion.

    Returns:
        Records in the order of `questions`, the samples of one together.

    Raises:
        RpamError: The file is from another version, or the engine fails; what has ended is kept.
    """
    by_key = {q.key: q for q in questions}
    keys = sample_keys(questions, samples)
    there = read_rows(file)
    missing = [key for key in keys if key not in there]
    asked = {
        key: prompts[key] if prompts else engine.chat_prompt(by_key[key].question)
        for key in dict.fromkeys(_question_of(key) for key in missing)
    }
    requests = {
        key: Request(
            key,
            asked[_question_of(key)],
            max_tokens,
            replace(sampling, seed=zlib.crc32(f"{sampling.seed}/{key}".encode())),
            by_key[_question_of(key)].question,
        )
        for key in missing
    }

    # Prompts that were handed in may come from another template.
    think_open = prompts is None and bool(requests) and engine.opens_think

    def graded() -> Iterator[dict[str, Any]]:
        for completion in engine.generate(list(requests.values())):
            request = requests[completion.key]
            record = to_record(completion, by_key[_question_of(completion.key)], grade_answer, think_open)
            on_record()
            yield asdict(
                replace(
                    record,
                    prompt=prompt_hash(request),
                    engine=engine.identity,
                    sampling={**asdict(request.sampling), "max_tokens": max_tokens},
                )
            )

    append_rows(file, graded())
    records = read_records(file)
    stale = [key for key in keys if records[key].grader != GRADER_VERSION]
    for key in stale:
        records[key] = regraded(records[key], by_key[records[key].question], grade_answer)
    if missing or stale:
        # In the order of the questions, not in that of an interruption; what others asked for stays behind them.
        write_records(file, list(({key: records[key] for key in keys} | records).values()))
    return [records[key] for key in keys]


def sample_keys(questions: Sequence[Question], samples: int) -> list[str]:
    """Keys of all samples, those of a question together."""
    return [f"{q.key}/{i}" for q in questions for i in range(samples)]


def to_record(
    completion: Completion, question: Question, grade_answer: Grade = in_box, think_open: bool = False
) -> Record:
    """Grade one completion; `think_open` tells that the prompt had opened the think block."""
    verdict = grade_answer(completion.text, question, completion.finish_reason == "length", think_open)
    think_tokens, block = think_block(completion.pieces)
    if len(completion.pieces) == 1 and completion.generated > 2:
        think_tokens = round(completion.generated * think_share(completion.text))
    return Record(
        key=completion.key,
        question=question.key,
        level=question.level,
        answer=question.answer,
        correct=verdict.correct,
        reason=verdict.reason,
        path=verdict.path,
        think_open=think_open,
        tokens=completion.generated,
        think_tokens=think_tokens,
        think_block=block,
        finish_reason=completion.finish_reason,
        text=completion.text,
        seconds=completion.seconds,
    )


def regraded(record: Record, question: Question, grade_answer: Grade) -> Record:
    """The record with the verdict of the grader as it is now; nothing is generated."""
    verdict = grade_answer(record.text, question, record.finish_reason == "length", record.think_open)
    return replace(
        record,
        answer=question.answer,
        correct=verdict.correct,
        reason=verdict.reason,
        path=verdict.path,
        grader=GRADER_VERSION,
    )


def write_records(file: Path, records: Sequence[Record]) -> None:
    """Write a whole file of records, so that it is whole or as it was."""
    write_text(file, "".join(json.dumps(asdict(record), ensure_ascii=False) + "\n" for record in records))


def prompt_hash(request: Request) -> str:
    """Of the token ids; of the question where a server makes the prompt of it."""
    asked = json.dumps(list(request.prompt) or request.question)
    return hashlib.sha256(asked.encode()).hexdigest()[:16]


def think_block(pieces: Sequence[bytes]) -> tuple[int, str]:
    """Tokens inside the think block (all that follow where it never closes), and what became of it.

    A block that closes without having been opened was opened by the prompt (R1, Qwen3-Thinking).
    """
    text = b""
    opened_at = None
    for i, piece in enumerate(pieces):
        text += piece
        if THINK_CLOSE.encode() in text:
            return i if opened_at is None else max(0, i - opened_at - 1), "closed"
        if opened_at is None and THINK_OPEN.encode() in text:
            opened_at = i
    return (0, "none") if opened_at is None else (len(pieces) - opened_at - 1, "open")


def think_share(text: str) -> float:
    """Share of the text's characters that lie inside its think block."""
    before, closed, _ = text.partition(THINK_CLOSE)
    if not closed and THINK_OPEN not in text:
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


def _question_of(key: str) -> str:
    return key.rpartition("/")[0]
