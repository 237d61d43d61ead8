"""Answers side by side: a few questions, chosen by rule, that show what the merge does well and badly."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from quant.records import Record
from quant.tasks.questions import Question
from rpam_lite.checkpoint.think import THINK_CLOSE, THINK_OPEN
from rpam_lite.report.data import Answer, Example

_LONGEST, _TAIL = 6000, 1500  # characters of a text that are shown, and those of them from its end


@dataclass(frozen=True)
class Answered:
    """The first answers of both parents and the merge to one question."""

    short: Record
    long: Record
    merge: Record
    thinks: bool


@dataclass(frozen=True)
class _Kind:
    title: str
    rule: str
    holds: Callable[[Answered], bool]


_KINDS = (
    _Kind(
        "All right, and the merge is brief",
        "all three are right, and the merge does not think long",
        lambda a: a.short.correct and a.long.correct and a.merge.correct and not a.thinks,
    ),
    _Kind(
        "The merge thinks where it must",
        "Short is wrong, Long is right, and the merge thinks long and is right",
        lambda a: not a.short.correct and a.long.correct and a.merge.correct and a.thinks,
    ),
    _Kind(
        "The merge thinks in vain",
        "Short is right at once, and the merge thinks long all the same",
        lambda a: a.short.correct and a.thinks,
    ),
    _Kind(
        "The merge is wrong where Long is right",
        "Long is right, and the merge is wrong",
        lambda a: a.long.correct and not a.merge.correct,
    ),
    _Kind(
        "The merge never comes to an end",
        "the merge's answer was cut off, or its think block never closed",
        lambda a: a.merge.finish_reason == "length" or a.merge.think_block == "open",
    ),
)


def choose_examples(
    questions: Mapping[str, Question],
    short: Sequence[Record],
    long: Sequence[Record],
    merge: Sequence[Record],
    long_think_tokens: int,
) -> list[Example]:
    """One question of each kind that occurs: the one whose merged answer has the median length of its kind.

    Args:
        questions: By key.
        short: Records of the Short parent.
        long: Of the Long parent, on the same questions.
        merge: Of the merge, on the same questions.
        long_think_tokens: Think tokens from which an answer is a long one.
    """
    of_short, of_long = _first(short), _first(long)
    answered = [
        Answered(of_short[key], of_long[key], record, record.think_tokens >= long_think_tokens)
        for key, record in _first(merge).items()
        if key in of_short and key in of_long and key in questions
    ]
    examples, shown = [], set()
    for kind in _KINDS:
        found = sorted((a for a in answered if kind.holds(a)), key=lambda a: a.merge.tokens)
        left = [a for a in found if a.merge.question not in shown]
        if not left:
            continue
        chosen = left[len(left) // 2]
        question = questions[chosen.merge.question]
        shown.add(question.key)
        told = [_told("Short", chosen.short), _told("Long", chosen.long), _told("Merge", chosen.merge)]
        level = chosen.merge.level
        text = _clipped(question.question)
        examples.append(Example(kind.title, kind.rule, len(found), text, question.answer, level, told))
    return examples


def split_think(text: str, opened: bool) -> tuple[str, str]:
    """Think block and answer of a generated text, both without the marks.

    Args:
        text: What was generated.
        opened: Whether the prompt had opened the block.
    """
    before, closed, answer = text.rpartition(THINK_CLOSE)
    if closed:
        return before.removeprefix(THINK_OPEN).strip(), answer.strip()
    lead, mark, block = text.partition(THINK_OPEN)
    if mark:
        return block.strip(), lead.strip()
    return (text.strip(), "") if opened else ("", text.strip())


def _first(records: Sequence[Record]) -> dict[str, Record]:
    """First record of every question."""
    found: dict[str, Record] = {}
    for record in records:
        found.setdefault(record.question, record)
    return found


def _told(model: str, record: Record) -> Answer:
    think, text = split_think(record.text, record.think_open)
    return Answer(
        model,
        _clipped(think),
        _clipped(text),
        record.tokens,
        record.think_tokens,
        record.correct,
        record.reason,
        record.think_block,
        record.finish_reason == "length",
    )


def _clipped(text: str) -> str:
    """A text that may be megabytes of garbage, at a length that can be read."""
    if len(text) <= _LONGEST:
        return text
    left_out = len(text) - _LONGEST
    return f"{text[: _LONGEST - _TAIL]}\n[... {left_out} characters are left out here ...]\n{text[-_TAIL:]}"
