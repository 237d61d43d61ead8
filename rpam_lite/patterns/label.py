"""Label questions from the graded samples of both parents, and keep every count."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quant.tasks.questions import Question
from rpam_lite.errors import RpamError
from rpam_lite.patterns.adaptive import drawn, forecast
from rpam_lite.patterns.rule import Pattern, Rule

PATTERN_VERSION = 3


@dataclass(frozen=True)
class LabelledQuestion:
    """A calibration question with its label and the selected parent's right answer, as token ids."""

    key: str
    level: int
    label: Pattern
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]


def select(row: Mapping[str, Any], parent: Pattern) -> LabelledQuestion:
    """A row of patterns.jsonl with this parent selected, whatever its label."""
    response = tuple(row[f"response_{parent}"])
    return LabelledQuestion(row["key"], row["level"], parent, tuple(row["prompt_ids"]), response)


def label_questions(
    questions: Sequence[Question],
    prompts: Mapping[str, tuple[int, ...]],
    found: Mapping[str, Mapping[str, Sequence[dict[str, Any]]]],
    rule: Rule,
    samples: int,
    max_tokens: int,
) -> list[dict[str, Any]]:
    """Apply the rule to every question; rows of patterns.jsonl, dropped questions included.

    Args:
        questions: What was asked.
        prompts: Their token ids.
        found: By parent and question key the graded samples, numbered from 0; fewer than `samples` where
            the question was settled before.
        rule: The label rule.
        samples: Answers a question from each parent that count as all (k).
        max_tokens: Tokens of an answer at most.
    """
    rows = []
    for question in questions:
        own = {parent: found[parent][question.key] for parent in ("long", "short")}
        sums = {parent: drawn(own[parent]) for parent in own}
        ahead = forecast(rule, sums["long"], sums["short"], samples, max_tokens)
        row: dict[str, Any] = {
            "version": PATTERN_VERSION,
            "key": question.key,
            "question": question.question,
            "answer": question.answer,
            "level": question.level,
            "label": ahead.label,
            "rule": rule.name,
            "doubt": ahead.doubt,
            "samples": samples,
        }
        for parent, seen in sums.items():
            row[f"samples_{parent}"] = seen.count
            row[f"skipped_{parent}"] = list(range(seen.count, samples))
            row[f"correct_{parent}"] = seen.right
            row[f"tokens_{parent}"] = seen.tokens / seen.count if seen.count else None
            row[f"response_{parent}"] = response(own[parent]) if own[parent] else None
        row["prompt_ids"] = list(prompts[question.key])
        rows.append(row)
    return rows


def response(samples: Sequence[Mapping[str, Any]]) -> list[int]:
    """Token ids of the first right answer; of the first one where a rule selects a parent that never was.

    Not the shortest right one: that would teach to cut corners.
    """
    return list(next((s for s in samples if s["correct"]), samples[0])["token_ids"])


def labelled(rows: Iterable[dict[str, Any]]) -> list[LabelledQuestion]:
    """The questions of patterns.jsonl that have a label.

    Raises:
        RpamError: None has one, or only one of the two labels occurs.
    """
    result = [select(row, row["label"]) for row in rows if row["label"] is not None]
    if not result:
        raise RpamError(
            "patterns.jsonl: no question has a label, since neither parent was right often enough; take easier "
            "questions under `label.questions`, or look at the answers in the label stage's folder."
        )
    for pattern in ("long", "short"):
        if not any(q.label == pattern for q in result):
            raise RpamError(
                f"patterns.jsonl: no question is labelled {pattern!r}, so there is nothing to adapt to; "
                f"add {'harder' if pattern == 'long' else 'easier'} questions under `label.questions`."
            )
    return result
