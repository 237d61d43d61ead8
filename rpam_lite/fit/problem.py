"""What a fit minimises, and where one gradient keeps its tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from rpam_lite.fit.batches import MicroBatch
from rpam_lite.fit.grouping import Grouping
from rpam_lite.recipe import Fit
from rpam_lite.streaming.activations import CalibrationSet
from rpam_lite.streaming.ends import Ends
from rpam_lite.streaming.skeleton import Skeleton
from rpam_lite.streaming.store import ActivationStore
from rpam_lite.streaming.weights import WeightSource

# The first two are of hidden states, a decoder layer; the others of next-token distributions.
TERMS = ("alignment", "contrastive", "kl", "output_contrast", "likelihood", "entropy")
LAYER_TERMS = 2
Reducer = Callable[[torch.Tensor], torch.Tensor]  # sums a vector over all processes


@dataclass(frozen=True)
class Problem:
    """All that the objective is a function of, lambda aside.

    Attributes:
        skeleton: The architecture.
        source: The decoder layers of both parents.
        ends: Embedding, final norm and head of both.
        grouping: Which tensors share a lambda.
        questions: The calibration set.
        batches: The micro-batches of this process.
        captured: Folder with the parents' hidden states.
        settings: The recipe's `fit` section.
        dtype: What the layers compute in; lambda, losses and sums are at least fp32.
    """

    skeleton: Skeleton
    source: WeightSource
    ends: Ends
    grouping: Grouping
    questions: CalibrationSet
    batches: Sequence[MicroBatch]
    captured: Path
    settings: Fit
    dtype: torch.dtype

    @property
    def device(self) -> torch.device:
        return self.skeleton.device

    def names(self, layer: int) -> dict[str, str]:
        """Checkpoint names of a layer's tensors."""
        return self.skeleton.checkpoint_names(layer)


@dataclass(frozen=True)
class Stores:
    """Where one gradient keeps its tensors.

    Attributes:
        inputs: Every layer's input, and the last one's output [questions, length, hidden].
        injected: Gradients that enter at the layers' outputs [questions, kept, hidden].
        upstream: The gradient that travels down, as layer 0 [questions, length, hidden].
    """

    inputs: ActivationStore
    injected: ActivationStore
    upstream: ActivationStore


def weighted_terms(problem: Problem) -> torch.Tensor:
    """Weights of the terms, in order of TERMS, float32 [6]."""
    return torch.tensor([getattr(problem.settings, f"{term}_weight") for term in TERMS])
