"""The calibration set: which questions are captured, and which of their positions are kept."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any, Protocol

import torch

from rpam_lite.errors import RpamError
from rpam_lite.recipe import Capture
from rpam_lite.streaming.activations import (
    PARENTS,
    CalibrationSet,
)


class Labelled(Protocol):
    """What the capture needs of a labelled question."""

    @property
    def label(self) -> str: ...
    @property
    def prompt_ids(self) -> tuple[int, ...]: ...
    @property
    def response_ids(self) -> tuple[int, ...]: ...


def choose_questions(questions: Sequence[Any], per_class: int, seed: int) -> list[Any]:
    """Up to `per_class` questions of each label, evenly over their levels, drawn with `seed`, in their first order.

    Within a label the levels take turns, each giving a random question of its own, until there are enough or
    no more; a level that has run out is passed over. So a label holds every level as often as every other, as
    far as there are such questions, however uneven the question file is.
    """
    chosen: list[int] = []
    for label in PARENTS:
        draw = random.Random(f"{seed}-{label}")
        levels: dict[int, list[int]] = {}
        for i, question in enumerate(questions):
            if question.label == label:
                levels.setdefault(question.level, []).append(i)
        shuffled = [draw.sample(levels[level], len(levels[level])) for level in sorted(levels)]
        draw.shuffle(shuffled)  # or the last turn, which may not go round, would always favour the easy ones
        turns = [i for turn in zip_longest(*shuffled) for i in turn if i is not None]
        chosen += turns[:per_class]
    return [questions[i] for i in sorted(chosen)]


def calibration_set(questions: Sequence[Labelled], settings: Capture, with_states: bool = True) -> CalibrationSet:
    """Token ids and kept positions of the chosen questions.

    Args:
        questions: The chosen ones.
        settings: The recipe's `capture` section.
        with_states: Whether hidden states will be read; no position is kept without.
    """
    answers = [q.response_ids[: settings.answer_tokens] for q in questions]
    return CalibrationSet(
        token_ids=[torch.tensor(q.prompt_ids + answer) for q, answer in zip(questions, answers, strict=True)],
        prompt_lengths=[len(q.prompt_ids) for q in questions],
        is_long=torch.tensor([q.label == "long" for q in questions]),
        positions=[
            kept_positions(len(q.prompt_ids), len(answer), settings)
            if with_states
            else torch.empty(0, dtype=torch.int64)
            for q, answer in zip(questions, answers, strict=True)
        ],
    )


def kept_positions(prompt: int, response: int, settings: Capture) -> torch.Tensor:
    """Positions that the recipe keeps, ascending, int64.

    Raises:
        RpamError: Nothing is left.
    """
    kept = torch.zeros(prompt + response, dtype=torch.bool)
    if "prompt" in settings.positions:
        kept[:prompt] = True
    if "last_prompt_token" in settings.positions:
        kept[prompt - 1] = True
    if "response" in settings.positions:
        length = response if settings.response_tokens is None else settings.response_tokens
        kept[prompt : prompt + length : settings.response_stride] = True
    if settings.skip_first_token:
        kept[0] = False
    if not kept.any():
        raise RpamError(f"`capture.positions` {settings.positions!r} keeps no position; add 'prompt' or 'response'.")
    return kept.nonzero().flatten()
