"""What a merge method may look at before it merges: the models of the recipe, run one layer at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from rpam_lite.checkpoint.source import ParentSource
from rpam_lite.errors import RpamError
from rpam_lite.streaming.activations import CalibrationSet
from rpam_lite.streaming.passes import Streamed
from rpam_lite.streaming.skeleton import Skeleton
from rpam_lite.streaming.store import ActivationStore

Options = Mapping[str, float]


@dataclass(frozen=True)
class Tensors:
    """All tensors of one name.

    Attributes:
        name: In the checkpoint.
        long: The Long parent's, float32.
        short: The Short parent's, same shape.
        base: The common base's, same shape; None if the method does not need it.
        statistic: What the method measured for this tensor; None if nothing.
        seed: Differs from tensor to tensor; the same for the same recipe.
    """

    name: str
    long: torch.Tensor
    short: torch.Tensor
    base: torch.Tensor | None = None
    statistic: torch.Tensor | None = None
    seed: int = 0

    @property
    def task_vectors(self) -> list[torch.Tensor]:
        """L - B and S - B."""
        assert self.base is not None
        return [self.long - self.base, self.short - self.base]

    @property
    def of_linear_layer(self) -> bool:
        """Whether it is the weight of a linear layer inside a decoder layer."""
        return self.long.ndim == 2 and ".layers." in self.name


class Open(Protocol):
    """Opens one model of the recipe for `streaming.passes`."""

    def __call__(self, model: str | float, token_ids: Sequence[torch.Tensor]) -> Streamed:
        """`long`, `short`, `base`, or the merge with this lambda; `token_ids` are all that it will be given."""
        ...


@dataclass(frozen=True)
class Models:
    """The models of the recipe and the calibration set.

    Attributes:
        skeleton: The architecture.
        sources: Tensors of `long`, `short` and, where the recipe has one, `base`.
        open: Opens one model.
        batches: Gives micro-batches of sequences by their lengths.
        store: Gives a store for the hidden states of sequences of these shapes.
        captured: The capture stage's folder.
        questions: The calibration set; None for a method that does not need `capture`.
        seed: The recipe's.
    """

    skeleton: Skeleton
    sources: Mapping[str, ParentSource]
    open: Open
    batches: Callable[[Sequence[int]], list[list[int]]]
    store: Callable[[Sequence[tuple[int, ...]]], ActivationStore]
    captured: Path
    questions: CalibrationSet | None
    seed: int

    def calibration_set(self) -> CalibrationSet:
        """The calibration set of a method that needs `capture`."""
        assert self.questions is not None
        return self.questions

    def layer_names(self, layer: int) -> list[str]:
        """Checkpoint names of a decoder layer's tensors."""
        return list(self.skeleton.checkpoint_names(layer).values())

    def outside_names(self) -> list[str]:
        """Checkpoint names of the tensors that belong to no decoder layer."""
        return self.skeleton.outside

    def questions_of(self, label: str, most: int) -> list[int]:
        """At most `most` calibration questions with this label, the first ones.

        Raises:
            RpamError: There is none.
        """
        is_long = self.calibration_set().is_long.tolist()
        found = [q for q, long in enumerate(is_long) if long == (label == "long")][:most]
        if not found:
            raise RpamError(
                f"The calibration set holds no {label} question, and this method needs some; "
                "add questions that only one parent solves."
            )
        return found


Measure = Callable[[Models, Options], dict[str, torch.Tensor]]
Merge = Callable[[Tensors, Options], torch.Tensor]
