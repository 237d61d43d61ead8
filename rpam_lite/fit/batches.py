"""The calibration set in micro-batches of similar length, each question with its weight in the loss."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.utils.rnn import pad_sequence

from rpam_lite.fit.objective import position_weights
from rpam_lite.recipe import Fit
from rpam_lite.streaming.activations import CalibrationSet, Targets, load_layer, load_targets

PADDED = 1.1  # most padded tokens of a micro-batch for each real one


@dataclass(frozen=True)
class MicroBatch:
    """Some calibration questions, padded on the right.

    Attributes:
        questions: Their numbers in the calibration set.
        ids: int64 [questions, length].
        positions: Kept positions, int64 [questions, kept]; 0 where padded.
        mask: 1 at real kept positions, float32 [questions, kept].
        target_rows: Question of each target position, int64 [targets].
        target_columns: Its position, int64 [targets].
        targets: The selected parent's distribution there.
        target_weights: Weight of each target position within its question, float64 [targets].
        next_ids: The response token that follows each target position, int64 [targets]; -1 behind the last one.
        decisions: Which target position is each question's first one, int64 [questions].
        other: The other parent's distribution at the first ones.
        shares: Weight of each question in the loss, float32 [questions]; all questions' sum is 1.
    """

    questions: list[int]
    ids: torch.Tensor
    positions: torch.Tensor
    mask: torch.Tensor
    target_rows: torch.Tensor
    target_columns: torch.Tensor
    targets: Targets
    target_weights: torch.Tensor
    next_ids: torch.Tensor
    decisions: torch.Tensor
    other: Targets
    shares: torch.Tensor


def question_shares(questions: CalibrationSet, long_weight: float) -> torch.Tensor:
    """Weight of every question, float32 [questions], with sum 1: long ones weigh `long_weight` short ones."""
    weights = torch.where(questions.is_long, long_weight, 1.0)
    return weights / weights.sum()


def micro_batches(lengths: list[int], tokens: int) -> list[list[int]]:
    """Questions in groups of similar length, each of at most `tokens` padded tokens (or one question)."""
    groups: list[list[int]] = []
    real = 0
    for q in sorted(range(len(lengths)), key=lambda q: (lengths[q], q)):
        padded = lengths[q] * (len(groups[-1]) + 1) if groups else 0
        if groups and padded <= min(tokens, PADDED * (real + lengths[q])):
            groups[-1].append(q)
            real += lengths[q]
        else:
            groups.append([q])
            real = lengths[q]
    return groups


def make_batch(
    questions: CalibrationSet,
    chosen: list[int],
    targets: tuple[list[Targets], list[Targets]],
    shares: torch.Tensor,
    settings: Fit,
) -> MicroBatch:
    """Pad the chosen questions; `targets` (the selected parent's, the other's) and `shares` are those of all."""
    columns = [questions.target_positions(q) for q in chosen]
    counts = torch.tensor([len(c) for c in columns])
    follows = [
        torch.cat([questions.token_ids[q], torch.tensor([-1])])[c + 1] for q, c in zip(chosen, columns, strict=True)
    ]
    return MicroBatch(
        questions=chosen,
        ids=pad_sequence([questions.token_ids[q] for q in chosen], batch_first=True),
        positions=pad_sequence([questions.positions[q] for q in chosen], batch_first=True),
        mask=pad_sequence([torch.ones(len(questions.positions[q])) for q in chosen], batch_first=True),
        target_rows=torch.cat([torch.full_like(c, row) for row, c in enumerate(columns)]),
        target_columns=torch.cat(columns),
        targets=Targets.joined([targets[0][q] for q in chosen]),
        target_weights=torch.cat([_weights(len(c), settings) for c in columns]),
        next_ids=torch.cat(follows),
        decisions=counts.cumsum(0) - counts,
        other=Targets.joined([targets[1][q] for q in chosen]),
        shares=shares[chosen],
    )


def _weights(positions: int, settings: Fit) -> torch.Tensor:
    return position_weights(positions, settings.form, settings.decision_share, settings.kl_tokens)


def load_batches(
    folder: Path, questions: CalibrationSet, chosen: list[int], tokens: int, shares: torch.Tensor, settings: Fit
) -> list[MicroBatch]:
    """The chosen questions of a capture in micro-batches of at most `tokens` padded tokens."""
    targets = load_targets(folder, questions)
    groups = micro_batches([len(questions.token_ids[q]) for q in chosen], tokens)
    return [make_batch(questions, [chosen[i] for i in group], targets, shares, settings) for group in groups]


class LayerTargets:
    """Both parents' kept hidden states after one layer, as selected and other.

    Args:
        folder: The capture's folder.
        questions: The calibration set.
        layer: Which decoder layer.
    """

    def __init__(self, folder: Path, questions: CalibrationSet, layer: int) -> None:
        self._is_long = questions.is_long.tolist()
        self._long, self._short, self.mean_gap = load_layer(folder, layer, questions)

    def of(self, batch: MicroBatch, device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Selected and other [questions, kept, hidden] of a micro-batch."""
        selected = [(self._long if self._is_long[q] else self._short)[q] for q in batch.questions]
        other = [(self._short if self._is_long[q] else self._long)[q] for q in batch.questions]
        return (
            pad_sequence(selected, batch_first=True).to(device).to(dtype),  # moved as bf16, widened there
            pad_sequence(other, batch_first=True).to(device).to(dtype),
        )
