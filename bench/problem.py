"""The fit's objective on a calibration set that a benchmark made, without a recipe."""

from __future__ import annotations

from pathlib import Path

import torch

from rpam_lite.fit.batches import load_batches, micro_batches, question_shares
from rpam_lite.fit.grouping import grouping
from rpam_lite.fit.problem import Problem, Stores
from rpam_lite.recipe import Fit
from rpam_lite.streaming.activations import CalibrationSet
from rpam_lite.streaming.capture import capture
from rpam_lite.streaming.ends import Ends
from rpam_lite.streaming.store import MemoryStore
from rpam_lite.streaming.weights import WeightSource

# Output alignment with a little of both terms on hidden states, so that a step computes everything.
EVERY_TERM = {"alignment_weight": 0.1, "contrastive_weight": 0.05, "kl_form": "mean", "long_weight": 1.0}
TOP_K = 64


def capture_questions(
    source: WeightSource,
    ends: Ends,
    questions: CalibrationSet,
    micro_tokens: int,
    folder: Path,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Both parents' states and next-token distributions, into `folder`."""
    source.skeleton.share_masks(max(len(ids) for ids in questions.token_ids))
    batches = micro_batches([len(ids) for ids in questions.token_ids], micro_tokens)
    capture(source, ends, questions, batches, TOP_K, folder, dtype)


def captured_problem(
    source: WeightSource,
    ends: Ends,
    questions: CalibrationSet,
    micro_tokens: int,
    captured: Path,
    settings: Fit,
    dtype: torch.dtype = torch.float32,
) -> Problem:
    """The objective on what `capture_questions` wrote."""
    shares = question_shares(questions, settings.long_weight)
    return Problem(
        skeleton=source.skeleton,
        source=source,
        ends=ends,
        grouping=grouping(source.skeleton.tensors(), settings.granularity),
        questions=questions,
        batches=load_batches(captured, questions, list(range(len(questions))), micro_tokens, shares, settings),
        captured=captured,
        settings=settings,
        dtype=dtype,
    )


def memory_stores(device: torch.device) -> Stores:
    """Layer inputs and gradients kept in host memory."""
    return Stores(*(MemoryStore(torch.device("cpu"), device) for _ in range(3)))
