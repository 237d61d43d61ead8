"""A small calibration problem on a random pair, for the tests of capture, gradient and fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from rpam_lite.checkpoint.source import CheckpointSource
from rpam_lite.fit.batches import load_batches, micro_batches, question_shares
from rpam_lite.fit.problem import Problem, Stores
from rpam_lite.fit.setup import grouping_of, open_stores
from rpam_lite.patterns.label import LabelledQuestion
from rpam_lite.recipe import Capture, Fit
from rpam_lite.streaming.activations import CalibrationSet, load_questions
from rpam_lite.streaming.calibration import calibration_set
from rpam_lite.streaming.capture import capture
from rpam_lite.streaming.ends import Ends
from rpam_lite.streaming.skeleton import Skeleton
from rpam_lite.streaming.weights import WeightSource

QUESTIONS = [
    LabelledQuestion(str(i), 1, "long" if i % 2 else "short", tuple(range(20, 25 + i)), tuple(range(60, 64 + 2 * i)))
    for i in range(6)
]
MICRO_TOKENS = 40

# A term of the hidden states, a contrastive one and one of the outputs.
EVERY_KIND = {"alignment_weight": 0.1, "contrastive_weight": 0.05, "kl_form": "mean"}


def engine(pair: Path, questions: CalibrationSet, **source: Any) -> tuple[Skeleton, WeightSource, Ends]:
    """Skeleton, layers and ends of a pair."""
    long, short = CheckpointSource(pair / "long"), CheckpointSource(pair / "short")
    skeleton = Skeleton(pair / "short")
    return (
        skeleton,
        WeightSource(long, short, skeleton, **source),
        Ends(long, short, skeleton, questions.token_ids, chunk_rows=40),
    )


def capture_pair(pair: Path, folder: Path, settings: Capture | None = None, questions: Any = QUESTIONS) -> Path:
    """Capture the calibration questions of a pair."""
    chosen = calibration_set(questions, settings or Capture(top_k=16))
    _, source, ends = engine(pair, chosen)
    batches = micro_batches([len(t) for t in chosen.token_ids], MICRO_TOKENS)
    capture(source, ends, chosen, batches, (settings or Capture(top_k=16)).top_k, folder)
    return folder


def problem_of(pair: Path, captured: Path, dtype: torch.dtype, mine: list[int] | None = None, **fit: Any) -> Problem:
    """The objective of a captured pair."""
    questions = load_questions(captured)
    skeleton, source, ends = engine(pair, questions)
    settings = Fit.model_validate(EVERY_KIND | fit)
    shares = question_shares(questions, settings.long_weight).to(dtype)
    chosen = list(range(len(questions))) if mine is None else mine
    return Problem(
        skeleton,
        source,
        ends,
        grouping_of(skeleton, settings),
        questions,
        load_batches(captured, questions, chosen, MICRO_TOKENS, shares, settings),
        captured,
        settings,
        dtype,
    )


def stores_of(problem: Problem, folder: Path, kind: Any = "host") -> Stores:
    """Stores for one gradient."""
    return open_stores(problem, kind, folder)
