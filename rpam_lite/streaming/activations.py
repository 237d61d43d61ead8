"""What the capture leaves on the disk and the fit reads.

questions.safetensors           token ids, prompt lengths, labels, kept positions, all ragged
layer-000.safetensors ...       both parents' hidden states after each decoder layer, bf16
top_k.json                      how many log-probabilities a position are kept, and what that loses
targets.safetensors             the selected parent's next-token distribution on its response, and the
                                other one's where the answer begins
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from rpam_lite.checkpoint.files import load_tensors, whole_file

PARENTS = ("long", "short")
_MEND = "run `rpam capture` again"


@dataclass(frozen=True)
class CalibrationSet:
    """Token ids and kept positions of every calibration question.

    Attributes:
        token_ids: Prompt and selected response, int64 [length], one a question.
        prompt_lengths: Tokens of each prompt.
        is_long: Whether the label selects the Long parent, bool [questions].
        positions: Positions whose hidden states are kept, int64, ascending, one tensor a question.
    """

    token_ids: list[torch.Tensor]
    prompt_lengths: list[int]
    is_long: torch.Tensor
    positions: list[torch.Tensor]

    def __len__(self) -> int:
        return len(self.token_ids)

    def target_positions(self, question: int) -> torch.Tensor:
        """Positions that predict the response and its end: last prompt token to last response token."""
        return torch.arange(self.prompt_lengths[question] - 1, len(self.token_ids[question]))


@dataclass(frozen=True)
class Targets:
    """Next-token distributions at target positions, concatenated.

    Attributes:
        ids: The k likeliest tokens, int64 [positions, k].
        logprobs: Their log-probabilities, float32 [positions, k].
        tail: Probability of all other tokens, float32 [positions].
    """

    ids: torch.Tensor
    logprobs: torch.Tensor
    tail: torch.Tensor

    @classmethod
    def joined(cls, parts: Sequence[Targets]) -> Targets:
        """Those of several questions, one after another."""
        return cls(
            torch.cat([part.ids for part in parts]),
            torch.cat([part.logprobs for part in parts]),
            torch.cat([part.tail for part in parts]),
        )


def save_questions(questions: CalibrationSet, folder: Path) -> None:
    """Write questions.safetensors."""
    _save(
        {
            "token_ids": torch.cat(questions.token_ids).int(),
            "lengths": torch.tensor([len(t) for t in questions.token_ids]),
            "prompt_lengths": torch.tensor(questions.prompt_lengths),
            "is_long": questions.is_long,
            "positions": torch.cat(questions.positions).int(),
            "position_counts": torch.tensor([len(p) for p in questions.positions]),
        },
        folder / "questions.safetensors",
    )


def load_questions(folder: Path) -> CalibrationSet:
    """Read questions.safetensors."""
    raw = load_tensors(folder / "questions.safetensors", _MEND)
    return CalibrationSet(
        token_ids=list(torch.split(raw["token_ids"].long(), raw["lengths"].tolist())),
        prompt_lengths=raw["prompt_lengths"].tolist(),
        is_long=raw["is_long"],
        positions=list(torch.split(raw["positions"].long(), raw["position_counts"].tolist())),
    )


def layer_file(folder: Path, layer: int) -> Path:
    """File of both parents' hidden states after one decoder layer."""
    return folder / f"layer-{layer:03}.safetensors"


def targets_file(folder: Path) -> Path:
    """File of the next-token distributions, the last that a capture writes."""
    return folder / "targets.safetensors"


def save_layer(long: torch.Tensor, short: torch.Tensor, mean_gap: torch.Tensor, folder: Path, layer: int) -> None:
    """Write both parents' hidden states.

    Args:
        long: Of the Long parent, bf16 [kept positions of all questions, hidden].
        short: Of the Short parent, the same.
        mean_gap: Mean over the questions of their squared distance, float32 scalar.
        folder: Where the file goes.
        layer: Number of the decoder layer.
    """
    _save({"long": long, "short": short, "mean_gap": mean_gap}, layer_file(folder, layer))


def load_layer(
    folder: Path, layer: int, questions: CalibrationSet
) -> tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor]:
    """Hidden states of the Long and of the Short parent, bf16 [kept positions, hidden] a question, and the mean gap."""
    raw = load_tensors(layer_file(folder, layer), _MEND)
    counts = [len(p) for p in questions.positions]
    return list(torch.split(raw["long"], counts)), list(torch.split(raw["short"], counts)), raw["mean_gap"]


def save_targets(selected: Targets, other: Targets, folder: Path) -> None:
    """Write targets.safetensors.

    Args:
        selected: The selected parent's, at every target position of every question.
        other: The other parent's, at the first target position of every question.
        folder: Where the file goes.
    """
    tensors = {
        prefix + name: tensor
        for prefix, targets in (("", selected), ("other_", other))
        for name, tensor in (("ids", targets.ids.int()), ("logprobs", targets.logprobs), ("tail", targets.tail))
    }
    _save(tensors, targets_file(folder))


def load_targets(folder: Path, questions: CalibrationSet) -> tuple[list[Targets], list[Targets]]:
    """Of each question the selected parent's targets, and the other's where the answer begins."""
    raw = load_tensors(targets_file(folder), _MEND)
    counts = [len(questions.target_positions(q)) for q in range(len(questions))]

    def split(prefix: str, sizes: list[int]) -> list[Targets]:
        pieces = zip(*(torch.split(raw[prefix + name], sizes) for name in ("ids", "logprobs", "tail")), strict=True)
        return [Targets(ids.long(), logprobs, tail) for ids, logprobs, tail in pieces]

    return split("", counts), split("other_", [1] * len(questions))


def stored_top_k(folder: Path) -> int:
    """How many log-probabilities a position the capture has kept."""
    with safe_open(targets_file(folder), framework="pt") as opened:
        return int(opened.get_slice("ids").get_shape()[1])


def _save(tensors: dict[str, torch.Tensor], path: Path) -> None:
    with whole_file(path) as part:
        save_file({name: t.contiguous() for name, t in tensors.items()}, part)
