"""Sample both parents on the calibration questions, grade, label, keep every count."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quant.engines import Engine, Request, Sampling
from quant.tasks.grader import GRADER_VERSION, grade
from quant.tasks.questions import Question
from rpam_lite.checkpoint.files import keep_partial
from rpam_lite.errors import RpamError
from rpam_lite.patterns.rule import Pattern, pattern_label

PATTERN_VERSION = 1


@dataclass(frozen=True)
class LabelledQuestion:
    """A calibration question with its label and the selected parent's right answer, as token ids."""

    key: str
    level: int
    label: Pattern
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]


def sample_parent(
    engine: Engine,
    questions: Sequence[Question],
    prompts: Mapping[str, tuple[int, ...]],
    samples: int,
    sampling: Sampling,
    max_tokens: int,
    file: Path,
    on_sample: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """Sample `samples` answers a question and grade them, into a JSON-lines file.

    `prompts` holds token ids by question key: both parents are asked in the same words.

    Each sample has its own seed, a hash of `sampling.seed` and of the sample's key, so that an
    interrupted run draws what an uninterrupted one would have drawn.
    """
    by_key = {q.key: q for q in questions}

    keys = [f"{question.key}/{i}" for question in questions for i in range(samples)]

    def generate(missing: list[str]) -> Iterable[dict[str, Any]]:
        requests = []
        for key in missing:
            seed = zlib.crc32(f"{sampling.seed}/{key}".encode())
            drawn = Sampling(sampling.temperature, sampling.top_p, sampling.top_k, seed)
            requests.append(Request(key, prompts[_question_of(key)], max_tokens, drawn))
        for completion in engine.generate(requests):
            question = by_key[_question_of(completion.key)]
            verdict = grade(completion.text, question.answer, truncated=completion.finish_reason == "length")
            on_sample()
            yield {
                "version": PATTERN_VERSION,
                "grader": GRADER_VERSION,
                "key": completion.key,
                "question": question.key,
                "correct": verdict.correct,
                "reason": verdict.reason,
                "tokens": completion.generated,
                "finish_reason": completion.finish_reason,
                "token_ids": list(completion.token_ids),
            }

    return keep_partial(file, keys, generate)


def label_questions(
    questions: Sequence[Question],
    prompts: Mapping[str, tuple[int, ...]],
    long_samples: Sequence[dict[str, Any]],
    short_samples: Sequence[dict[str, Any]],
    samples: int,
) -> list[dict[str, Any]]:
    """Apply the rule to every question; rows of patterns.jsonl, dropped questions included."""
    rows = []
    for question in questions:
        drawn = {
            "long": _of_question(long_samples, question.key),
            "short": _of_question(short_samples, question.key),
        }
        correct = {parent: sum(s["correct"] for s in drawn[parent]) for parent in drawn}
        label = pattern_label(correct["long"], correct["short"], samples)
        response = None
        if label is not None:
            # The first right one, not the shortest: the shortest would teach to cut corners.
            response = next(s["token_ids"] for s in drawn[label] if s["correct"])
        rows.append(
            {
                "version": PATTERN_VERSION,
                "key": question.key,
                "question": question.question,
                "answer": question.answer,
                "level": question.level,
                "label": label,
                "samples": samples,
                "correct_long": correct["long"],
                "correct_short": correct["short"],
                "tokens_long": sum(s["tokens"] for s in drawn["long"]) / samples,
                "tokens_short": sum(s["tokens"] for s in drawn["short"]) / samples,
                "prompt_ids": list(prompts[question.key]),
                "response_ids": response,
            }
        )
    return rows


def labelled(rows: Iterable[dict[str, Any]]) -> list[LabelledQuestion]:
    """The questions of patterns.jsonl that have a label.

    Raises:
        RpamError: None has one, or only one of the two labels occurs.
    """
    result = [
        LabelledQuestion(row["key"], row["level"], row["label"], tuple(row["prompt_ids"]), tuple(row["response_ids"]))
        for row in rows
        if row["label"] is not None
    ]
    for pattern in ("long", "short"):
        if not any(q.label == pattern for q in result):
            raise RpamError(
                f"patterns.jsonl: no question is labelled {pattern!r}, so there is nothing to adapt to; "
                f"add {'harder' if pattern == 'long' else 'easier'} questions under `label.questions`."
            )
    return result


def _of_question(samples: Sequence[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    """Samples of one question, in the order in which they were numbered."""
    return [s for s in samples if s["question"] == key]


def _question_of(sample_key: str) -> str:
    return sample_key.split("/")[0]
