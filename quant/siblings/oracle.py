"""The oracle: per question the better of two models, which no router between them can beat on these answers."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from quant.evaluation import ModelRun
from quant.measures import by_question, require_same_questions
from quant.records import Record
from rpam_lite.errors import RpamError


def oracle(one: Sequence[Record], other: Sequence[Record]) -> list[Record]:
    """Records of the better model of each question: more often right, then fewer tokens, then the first.

    It chooses after seeing the graded answers, so that it also gains from luck; a router has to choose before.

    Args:
        one: A model's records.
        other: Another's on the same questions, in the same order.

    Returns:
        In the order of the questions, each question's from one model.

    Raises:
        RpamError: They did not answer the same questions.
    """
    require_same_questions(by_question(one), by_question(other))
    ours, theirs = _grouped(one), _grouped(other)
    return [record for question, group in ours.items() for record in max(group, theirs[question], key=_worth)]


def oracle_run(one: ModelRun, other: ModelRun, name: str = "oracle") -> ModelRun:
    """`oracle` on every task of two runs, as a run that can be compared like any other.

    Raises:
        RpamError: They did not answer the same tasks or questions.
    """
    if one.records.keys() != other.records.keys():
        raise RpamError(
            f"{one.name} answered the tasks {sorted(one.records)} and {other.name} {sorted(other.records)}; "
            "evaluate both in one call."
        )
    records = {task: oracle(rows, other.records[task]) for task, rows in one.records.items()}
    return ModelRun(name, f"{one.identity}+{other.identity}", records)


def _grouped(records: Sequence[Record]) -> dict[str, list[Record]]:
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record.question, []).append(record)
    return groups


def _worth(records: Sequence[Record]) -> tuple[float, float]:
    return fmean(r.correct for r in records), -fmean(r.tokens for r in records)
