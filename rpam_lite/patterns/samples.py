"""Graded answers of one parent, kept as JSON lines from the moment each ends.

A kept sample is never drawn again: not after an interruption, not for another rule, another k or a
mended gold answer. It belongs to its prompt and its seed; whatever else it depends on (weights, engine,
temperature ...) must be in the file's name.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from quant.engines import Completion, Engine, Request, Sampling
from quant.records import prompt_hash
from quant.tasks.questions import Question
from quant.tasks.task import IN_BOX, Grading
from rpam_lite.checkpoint.files import append_rows, whole_rows, write_text

SAMPLE_VERSION = 2
Row = dict[str, Any]


class Sampler:
    """Draws numbered samples of one parent, or finds them in its file.

    Args:
        open_engine: Loads the parent; called when the first sample is missing, if ever.
        questions: What to ask.
        prompts: Token ids by question key: both parents are asked in the same words.
        sampling: How tokens are drawn. Each sample has its own seed, a hash of `sampling.seed` and of its
            key ("12/0"), so that an interrupted run draws what an uninterrupted one would have drawn.
        max_tokens: Generated tokens after which an answer is cut off, and wrong.
        file: The JSON lines. Appended to while drawing, put in order at the end.
        grading: How answers are graded.
        encode: Token ids of a text in the prompts' vocabulary, for an engine that tells none.
        begin: Called with the number of missing samples before they are drawn; what it returns is called
            after each.
        think_open: Whether the prompts open the think block.
    """

    def __init__(
        self,
        open_engine: Callable[[], AbstractContextManager[Engine]],
        questions: Sequence[Question],
        prompts: Mapping[str, tuple[int, ...]],
        sampling: Sampling,
        max_tokens: int,
        file: Path,
        grading: Grading = IN_BOX,
        encode: Callable[[str], tuple[int, ...]] = lambda text: (),
        begin: Callable[[int], Callable[[], None]] = lambda missing: lambda: None,
        think_open: bool = False,
    ) -> None:
        self._open_engine, self._encode, self._begin = open_engine, encode, begin
        self._questions = {q.key: q for q in questions}
        self._prompts, self._sampling, self._max_tokens = prompts, sampling, max_tokens
        self._file, self._think_open = file, think_open
        self._grading = grading
        self._rows = _read(file)
        self._stack = ExitStack()
        self._engine: Engine | None = None

    def __enter__(self) -> Sampler:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._stack.close()
        if kind is None and self._rows:
            place = {key: number for number, key in enumerate(self._questions)}

            def order(row: Row) -> tuple[int, str, int, str]:
                question, _, number = row["key"].rpartition("/")
                return place.get(question, len(place)), question, int(number), row["prompt"]

            text = "".join(_line(row) for row in sorted(self._rows.values(), key=order))
            if not self._file.exists() or self._file.read_text(encoding="utf-8") != text:
                write_text(self._file, text)

    def draw(self, keys: list[str]) -> list[Row]:
        """The samples of these keys, in this order; what is missing is drawn and graded."""
        requests = {key: self._request(key) for key in keys}
        missing = [r for key, r in requests.items() if (key, prompt_hash(r)) not in self._rows]
        if missing:
            self._generate(missing)
        return [self._graded((key, prompt_hash(request))) for key, request in requests.items()]

    def _generate(self, missing: list[Request]) -> None:
        if self._engine is None:
            self._engine = self._stack.enter_context(self._open_engine())
        step = self._begin(len(missing))
        engine, by_key = self._engine, {request.key: request for request in missing}

        def rows() -> Iterator[Row]:
            for completion in engine.generate(missing):
                row = self._row(completion, by_key[completion.key])
                self._rows[row["key"], row["prompt"]] = row
                step()
                yield row

        append_rows(self._file, rows())

    def _request(self, key: str) -> Request:
        question = self._questions[key.rpartition("/")[0]]
        seed = zlib.crc32(f"{self._sampling.seed}/{key}".encode())
        sampling = replace(self._sampling, seed=seed)
        return Request(key, self._prompts[question.key], self._max_tokens, sampling, question.question)

    def _row(self, completion: Completion, request: Request) -> Row:
        question = self._questions[completion.key.rpartition("/")[0]]
        return self._with_verdict(
            {
                "version": SAMPLE_VERSION,
                "key": completion.key,
                "question": question.key,
                "prompt": prompt_hash(request),
                "think_open": self._think_open,
                "tokens": completion.generated,
                "finish_reason": completion.finish_reason,
                "text": completion.text,
                "token_ids": list(completion.token_ids or self._encode(completion.text)),
            },
            question,
        )

    def _graded(self, name: tuple[str, str]) -> Row:
        """The kept row, graded again if the grader or the gold answer is another one now."""
        row = self._rows[name]
        question = self._questions[row["question"]]
        now = [self._grading.tag, question.answer, question.tolerance]
        if not self._grading.tag or [row["grader"], row["answer"], row.get("tolerance", 0.0)] != now:
            row = self._rows[name] = self._with_verdict(row, question)
        return row

    def _with_verdict(self, row: Row, question: Question) -> Row:
        verdict = self._grading.grade(row["text"], question, row["finish_reason"] == "length", row["think_open"])
        return row | {
            "grader": self._grading.tag,
            "answer": question.answer,
            "tolerance": question.tolerance,
            "correct": verdict.correct,
            "reason": verdict.reason,
        }


def _read(file: Path) -> dict[tuple[str, str], Row]:
    """Whole rows of this version, by key and prompt; a last line that was cut off is dropped."""
    return {(row["key"], row["prompt"]): row for row in whole_rows(file) if row.get("version") == SAMPLE_VERSION}


def _line(row: Row) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"
