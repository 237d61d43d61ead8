"""Fit lambda of all layers at once, by plain autograd through the whole merged model.

Everything is fp32: coefficients, Adam's state, the merge arithmetic and the losses. One epoch is
one pass over the calibration set in seeded batches; after each the state is saved, so that an
interrupted fit goes on and ends with the same coefficients.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from rpam_lite.checkpoint.arithmetic import interpolate
from rpam_lite.checkpoint.files import whole_file
from rpam_lite.checkpoint.source import CheckpointSource
from rpam_lite.errors import RpamError
from rpam_lite.fit import objective
from rpam_lite.fit.coefficients import Coefficients, Granularity, group_of
from rpam_lite.recipe import Fit
from rpam_lite.streaming.activations import CalibrationSet, Targets, load_layer, load_questions, load_targets
from rpam_lite.streaming.capture import layer_outputs, load_model

TERMS = ("alignment", "contrastive", "kl")


@dataclass(frozen=True)
class Batch:
    """Some calibration questions, padded on the right.

    Attributes:
        ids: int64 [questions, length].
        positions: Kept positions, int64 [questions, kept]; 0 where padded.
        mask: 1.0 at real kept positions, float32 [questions, kept].
        selected: Hidden states of each question's selected parent, float32 [questions, kept, hidden],
            one a layer.
        other: Those of the other parent.
        target_rows: Question of each target position, int64 [targets].
        target_columns: Its position, int64 [targets].
        targets: The selected parent's distribution there.
        shares: Weight of each question, divided by that of a full batch, float32 [questions].
    """

    ids: torch.Tensor
    positions: torch.Tensor
    mask: torch.Tensor
    selected: list[torch.Tensor]
    other: list[torch.Tensor]
    target_rows: torch.Tensor
    target_columns: torch.Tensor
    targets: Targets
    shares: torch.Tensor


@dataclass(frozen=True)
class Calibration:
    """The activation store in memory, with each layer's mean gap between the parents."""

    questions: CalibrationSet
    states: dict[str, list[list[torch.Tensor]]]
    targets: list[Targets]
    mean_gaps: list[torch.Tensor]


def load_calibration(folder: Path, layers: int) -> Calibration:
    """Read what the capture has written."""
    questions = load_questions(folder)
    states = {p: [load_layer(folder, p, i, questions) for i in range(layers)] for p in ("long", "short")}
    gaps = []
    for long, short in zip(states["long"], states["short"], strict=True):
        squares = [(a.float() - b.float()).square().sum() for a, b in zip(long, short, strict=True)]
        gaps.append(torch.stack(squares).mean())
    return Calibration(questions, states, load_targets(folder, questions), gaps)


def question_weights(questions: CalibrationSet, long_weight: float) -> torch.Tensor:
    """Weight of every question, float32 [questions], with mean 1: long ones weigh `long_weight` short ones."""
    weights = torch.where(questions.is_long, long_weight, 1.0)
    return weights / weights.mean()


def make_batch(data: Calibration, chosen: list[int], shares: torch.Tensor) -> Batch:
    """Pad the chosen questions into one batch; `shares` are theirs, float32 [questions]."""
    questions = data.questions

    def padded(parent_of: Callable[[int], str], layer: int) -> torch.Tensor:
        return pad_sequence([data.states[parent_of(q)][layer][q].float() for q in chosen], batch_first=True)

    def selected(q: int) -> str:
        return "long" if questions.is_long[q] else "short"

    def other(q: int) -> str:
        return "short" if questions.is_long[q] else "long"

    layers = range(len(data.mean_gaps))
    columns = [questions.target_positions(q) for q in chosen]
    targets = [data.targets[q] for q in chosen]
    return Batch(
        ids=pad_sequence([questions.token_ids[q] for q in chosen], batch_first=True),
        positions=pad_sequence([questions.positions[q] for q in chosen], batch_first=True),
        mask=pad_sequence([torch.ones(len(questions.positions[q])) for q in chosen], batch_first=True),
        selected=[padded(selected, i) for i in layers],
        other=[padded(other, i) for i in layers],
        target_rows=torch.cat([torch.full_like(c, row) for row, c in enumerate(columns)]),
        target_columns=torch.cat(columns),
        targets=Targets(*(torch.cat([getattr(t, f) for t in targets]) for f in ("ids", "logprobs", "tail"))),
        shares=shares,
    )


class MergedModel:
    """The merged model as a function of its coefficients.

    Args:
        long: The Long parent; its weights and the Short parent's are held in fp32.
        short: The Short parent.
        granularity: Which tensors share a coefficient.
    """

    def __init__(self, long: Path, short: Path, granularity: Granularity) -> None:
        source, other = CheckpointSource(long), CheckpointSource(short)
        self.model: PreTrainedModel = load_model(long).requires_grad_(False)
        tensors = [(name, source.get(name).float(), other.get(name).float()) for name in source.names()]
        self.parents = {name: (short_, long_) for name, long_, short_ in tensors}
        self.group = {name: group_of(name, granularity) for name in self.parents}
        self.groups = sorted(set(self.group.values()), key=_natural)
        self._row = {group: i for i, group in enumerate(self.groups)}

    def weights(self, values: torch.Tensor) -> dict[str, torch.Tensor]:
        """Merged tensors by name, differentiable in `values`, float32 [groups]."""
        return {
            name: interpolate(short, long, values[self._row[self.group[name]]])
            for name, (short, long) in self.parents.items()
        }

    def run(self, values: torch.Tensor, ids: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
        """Hidden states after every layer, the final ones, and the head [vocabulary, hidden]."""
        weights = self.weights(values)
        prefix = self.model.base_model_prefix + "."
        trunk = {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}
        with layer_outputs(self.model) as outputs:
            final = torch.func.functional_call(
                self.model.get_decoder(), trunk, kwargs={"input_ids": ids, "use_cache": False}
            ).last_hidden_state
        tied = self.model.config.tie_word_embeddings
        head = weights[f"{prefix}embed_tokens.weight" if tied else "lm_head.weight"]
        return outputs, final, head


def terms(merged: MergedModel, values: torch.Tensor, batch: Batch, data: Calibration, settings: Fit) -> torch.Tensor:
    """Weighted sums over the batch's questions of the three terms, float32 [3], in order of TERMS.

    The weights are the batch's shares: a full batch of average questions gives means, and what a
    question adds does not depend on its batch.
    """
    outputs, final, head = merged.run(values, batch.ids)
    kept = batch.positions.unsqueeze(-1)
    pull, push = torch.zeros(()), torch.zeros(())
    for layer, states in enumerate(outputs):
        z = states.gather(1, kept.expand(-1, -1, states.shape[-1]))
        selected, other = batch.selected[layer], batch.other[layer]
        pull = pull + (batch.shares * objective.alignment(z, selected, batch.mask, data.mean_gaps[layer])).sum()
        push = push + (batch.shares * objective.contrastive(z, selected, other, batch.mask, settings.temperature)).sum()
    logits = final[batch.target_rows, batch.target_columns] @ head.T
    divergence = objective.kl_to_targets(logits, batch.targets.ids, batch.targets.logprobs, batch.targets.tail)
    by_question = objective.mean_by_question(divergence, batch.target_rows, len(batch.shares))
    return torch.stack([pull / len(outputs), push / len(outputs), (batch.shares * by_question).sum()])


def fit(
    long: Path,
    short: Path,
    capture_folder: Path,
    settings: Fit,
    seed: int,
    state_file: Path,
    on_step: Callable[[str], None] = lambda note: None,
) -> tuple[Coefficients, list[dict[str, float]]]:
    """Fit the coefficients by Adam on the weighted sum of the three terms.

    Args:
        long: Folder of the Long parent.
        short: Folder of the Short parent.
        capture_folder: The activation store.
        settings: The recipe's `fit` section.
        seed: Order of the batches.
        state_file: Saved after every epoch; if it exists, the fit goes on from there.
        on_step: Called after every step with a short note on the losses.

    Returns:
        The coefficients, and for every epoch the mean of each term and of their weighted sum.

    Raises:
        RpamError: The loss is not finite.
    """
    merged = MergedModel(long, short, settings.granularity)
    data = load_calibration(capture_folder, merged.model.config.num_hidden_layers)
    term_weights = torch.tensor([settings.alignment_weight, settings.contrastive_weight, settings.kl_weight])
    weights = question_weights(data.questions, settings.long_weight)
    values = torch.full((len(merged.groups),), settings.start, requires_grad=True)
    adam = torch.optim.Adam([values], lr=settings.learning_rate)
    curve: list[dict[str, float]] = []
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        values.data.copy_(state["values"])
        adam.load_state_dict(state["adam"])
        curve = state["curve"]
    for epoch in range(len(curve), settings.epochs):
        for group in adam.param_groups:
            group["lr"] = settings.learning_rate * (1 - 0.9 * epoch / settings.epochs)
        means = torch.zeros(len(TERMS))
        for chosen in batches_of(data.questions, settings.batch_questions, f"{seed}-{epoch}"):
            batch = make_batch(data, chosen, weights[chosen] / settings.batch_questions)
            adam.zero_grad()
            parts = terms(merged, values, batch, data, settings)
            loss = (term_weights * parts).sum()
            if not torch.isfinite(loss):
                raise RpamError(f"The fit's loss is {loss.item()} in epoch {epoch + 1}; lower `fit.learning_rate`.")
            torch.autograd.backward(loss)
            adam.step()
            values.data.clamp_(settings.lower, settings.upper)
            means += parts.detach() * settings.batch_questions / len(data.questions)
            on_step(f"loss {loss.item():.4f}")
        curve.append(dict(zip(TERMS, means.tolist(), strict=True)) | {"loss": float(term_weights @ means)})
        with whole_file(state_file) as part:
            torch.save({"values": values.detach(), "adam": adam.state_dict(), "curve": curve}, part)
    fitted = dict(zip(merged.groups, values.tolist(), strict=True))
    return Coefficients(granularity=settings.granularity, values=fitted), curve


def batches_of(questions: CalibrationSet, size: int, seed: str) -> list[list[int]]:
    """Every question once, in seeded batches; both labels mix, at the price of some padding."""
    order = list(range(len(questions)))
    random.Random(seed).shuffle(order)
    return [order[i : i + size] for i in range(0, len(order), size)]


def _natural(group: str) -> tuple[object, ...]:
    """Sort key that puts layers.2 before layers.10."""
    return tuple((0, int(p), "") if p.isdigit() else (1, 0, p) for p in group.split("."))
