"""The dial: what a token costs decides which parent a question selects, and how much the question weighs.

On a question, Long is worth more than Short by its regret, in points of accuracy:

    regret = 100 * (acc_L - acc_S) - price * (len_L - len_S) / 1000

Its sign selects the parent, as the label rule `cost` does, and its size is what a wrong choice there
costs: the question's weight in the fit, where `fit/shares.py` brings points and nats together. At price 0
questions that both parents answer right weigh nothing, and the merge may think about everything; a high
price leaves Long those questions alone where thinking gains much in few tokens.

A dial by decision fits the answers of both parents once (`both_answers`), and the regret weighs a question where
the merge's row of the head is fitted that decides between them (`fit/decision.py`).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rpam_lite.patterns.label import LabelledQuestion, select
from rpam_lite.patterns.rule import Pattern


@dataclass(frozen=True)
class Priced:
    """What a price makes of one question: the parent selected, and its weight (0: nothing to learn there)."""

    selected: Pattern
    weight: float


def regret(row: Mapping[str, Any], price: float) -> float:
    """By how many points Long is worth more than Short on a row of patterns.jsonl.

    Args:
        row: Right answers, samples drawn and mean tokens of both parents.
        price: Points of accuracy that 1000 tokens must be worth.
    """
    accuracy = {p: row[f"correct_{p}"] / row[f"samples_{p}"] for p in ("long", "short")}
    gain: float = 100 * (accuracy["long"] - accuracy["short"])
    longer: float = row["tokens_long"] - row["tokens_short"]
    return gain - price * longer / 1000


def priced(row: Mapping[str, Any], price: float) -> Priced:
    """The parent that a question selects at this price; weight 0 if that one was never right."""
    value = regret(row, price)
    selected: Pattern = "long" if value > 0 else "short"
    return Priced(selected, abs(value) if row[f"correct_{selected}"] > 0 else 0.0)


@dataclass(frozen=True)
class Family:
    """Traces that the fits of several prices share.

    Attributes:
        traces: A question may stand twice, with either parent's answer.
        weights: By price the weight of every trace; 0 where that price does not select it.
    """

    traces: list[LabelledQuestion]
    weights: dict[float, list[float]]


def family(rows: Sequence[Mapping[str, Any]], prices: Sequence[float]) -> Family:
    """The traces that any of the prices selects, and their weights.

    Args:
        rows: The chosen rows of patterns.jsonl; those that only one parent was asked are passed over.
        prices: Points of accuracy a 1000 tokens, each a member of the family.
    """
    traces: list[LabelledQuestion] = []
    weights: dict[float, list[float]] = {price: [] for price in prices}
    for row in rows:
        if not row["samples_long"] or not row["samples_short"]:
            continue  # adaptive sampling never asked one parent: no price can be told
        found = {price: priced(row, price) for price in prices}
        for parent in ("long", "short"):
            own = {price: f.weight if f.selected == parent else 0.0 for price, f in found.items()}
            if any(own.values()):
                traces.append(select(row, parent))
                for price, weight in own.items():
                    weights[price].append(weight)
    return Family(traces, weights)


def both_answers(rows: Sequence[Mapping[str, Any]]) -> tuple[list[LabelledQuestion], list[float]]:
    """Both parents' answers to every question, and how much each weighs: how often that parent is right there.

    Args:
        rows: The chosen rows of patterns.jsonl; an answer of a parent that never was right is left out.
    """
    traces: list[LabelledQuestion] = []
    weights: list[float] = []
    for row in rows:
        for parent in ("long", "short"):
            if row[f"samples_{parent}"] and (right := row[f"correct_{parent}"] / row[f"samples_{parent}"]):
                traces.append(select(row, parent))
                weights.append(right)
    return traces, weights


def with_estimates(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows, with an estimate for a parent that adaptive sampling never asked.

    It stops where the label is settled: Short always right, and ties go to Short. There Long counts as right as
    Short, in the mean tokens of its answers on that level, or on all questions where that level has none.

    Args:
        rows: Rows of patterns.jsonl.
    """
    found = []
    for row in rows:
        filled = dict(row)
        for parent, other in (("long", "short"), ("short", "long")):
            if not row[f"samples_{parent}"]:
                asked = [r for r in rows if r[f"samples_{parent}"]]
                near = [r for r in asked if r["level"] == row["level"]] or asked
                filled |= {f"{count}_{parent}": row[f"{count}_{other}"] for count in ("samples", "correct")}
                filled[f"tokens_{parent}"] = sum(r[f"tokens_{parent}"] for r in near) / len(near)
        found.append(filled)
    return found


def set_aside(rows: Sequence[Mapping[str, Any]], count: int, seed: int) -> list[str]:
    """Keys of questions that no fit reads, so that a member can be chosen on them, in their order in `rows`.

    The same number of every level (as far as it goes), whatever their labels are: at most `count` in all and at
    most a third of a level.

    Args:
        rows: Rows of patterns.jsonl.
        count: Questions at most.
        seed: Of the draw.
    """
    levels: dict[Any, list[str]] = {}
    for row in rows:
        levels.setdefault(row["level"], []).append(row["key"])
    each = count // max(len(levels), 1)
    drawn: set[str] = set()
    for level, keys in levels.items():
        drawn.update(random.Random(f"{seed}-dial-{level}").sample(keys, min(each, len(keys) // 3)))
    return [row["key"] for row in rows if row["key"] in drawn]
