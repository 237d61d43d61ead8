"""Ask a model questions, and keep every answer from the moment it ends.

An interrupted evaluation goes on with what has no record yet, on the same engine or on another. A record
stands for its prompt: where a question or a template has changed, it is asked again. Verdicts are those of
the grader and the gold answers of now.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from quant.engines import Engine, Request, Sampling
from quant.records import Record, is_graded, prompt_hash, read_records, regraded, to_record, write_records
from quant.tasks.questions import Question
from quant.tasks.task import IN_BOX, Grading
from rpam_lite.checkpoint.files import append_rows, locked


def make_requests(
    questions: Sequence[Question],
    prompts: Mapping[str, tuple[int, ...]],
    max_tokens: int,
    samples: int = 1,
    sampling: Sampling = Sampling(),
) -> dict[str, Request]:
    """Requests by key ("12/0": question and number of the sample), those of a question together.

    Every sample has its own seed, a hash of `sampling.seed` and of the sample's key, so that an
    interrupted run draws what an uninterrupted one would have drawn.
    """
    requests = {}
    for question in questions:
        for number in range(samples):
            key = f"{question.key}/{number}"
            own = replace(sampling, seed=zlib.crc32(f"{sampling.seed}/{key}".encode()))
            requests[key] = Request(key, prompts[question.key], max_tokens, own, question.question)
    return requests


def missing(file: Path, requests: Mapping[str, Request]) -> list[Request]:
    """Requests that have no record in the file, or one of another prompt."""
    there = read_records(file)
    return [r for key, r in requests.items() if key not in there or there[key].prompt != prompt_hash(r)]


def kept_records(
    file: Path, requests: Mapping[str, Request], questions: Sequence[Question], grading: Grading = IN_BOX
) -> list[Record]:
    """Records of all requests, which must be there, in their order; graded again where that is due."""
    by_key = {q.key: q for q in questions}
    there = read_records(file)
    asked = {key: there[key] for key in requests}
    stale = {key: r for key, r in asked.items() if not is_graded(r, by_key[r.question], grading)}
    asked |= {key: regraded(record, by_key[record.question], grading) for key, record in stale.items()}
    if stale or list(there)[: len(asked)] != list(asked):
        # In the order of the questions, not in that of an interruption; what others asked for stays behind them.
        write_records(file, list((asked | {k: r for k, r in there.items() if k not in asked}).values()))
    return list(asked.values())


def answer_questions(
    engine: Engine,
    questions: Sequence[Question],
    file: Path,
    max_tokens: int,
    samples: int = 1,
    sampling: Sampling = Sampling(),
    prompts: Mapping[str, tuple[int, ...]] | None = None,
    think_open: bool = False,
    grading: Grading = IN_BOX,
    on_record: Callable[[Record], None] = lambda record: None,
) -> list[Record]:
    """Answer every question `samples` times and grade the answers; what the file has already is not asked again.

    Args:
        engine: Runs the model.
        questions: What to ask.
        file: JSON lines, one a completion, appended as they end. It belongs to one model and one way of sampling.
        max_tokens: Generated tokens after which an answer counts as truncated.
        samples: Answers a question.
        sampling: How tokens are drawn.
        prompts: Token ids by question key, where they shall not come from the engine's own template.
        think_open: Of given prompts, whether they end in an open think block.
        grading: The grader.
        on_record: Called with each new record, when it is kept.

    Returns:
        Records in the order of `questions`, the samples of one together.

    Raises:
        RpamError: Another run writes the file, it is from another version, or the engine fails; what has ended is kept.
    """
    by_key = {q.key: q for q in questions}
    if prompts is None:
        prompts = {q.key: engine.chat_prompt(q.question) for q in questions}
        think_open = bool(questions) and engine.opens_think
    requests = make_requests(questions, prompts, max_tokens, samples, sampling)

    def graded(asked: Sequence[Request]) -> Iterator[dict[str, Any]]:
        for completion in engine.generate(asked):
            request = requests[completion.key]
            record = to_record(completion, by_key[completion.key.rpartition("/")[0]], grading, think_open)
            how = {**asdict(request.sampling), "max_tokens": max_tokens}
            yield asdict(replace(record, prompt=prompt_hash(request), engine=engine.identity, sampling=how))
            on_record(record)

    with locked(file.with_name(file.name + ".lock"), str(file)):
        append_rows(file, graded(missing(file, requests)))
        return kept_records(file, requests, questions, grading)
