"""Methods that look at activations on the calibration set: AIM, ACM, and the fold of ReACT.

aim    the task vectors' sum, each input channel scaled by 1 - (a / max a) (1 - omega), a the mean
       absolute input that the base model sees there (arXiv 2502.02421)
acm    B + sum_k lambda_k (M_k - B), lambda_k = 1 - 1 / (1 + exp(-t (I_k - max I))), I_k the mutual
       information of the base's and the parent's hidden states after a layer (arXiv 2505.14009)
react  interpolation, then every down projection turned towards both parents' hidden states
       (arXiv 2511.10943, in the form of QA-Merging)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rpam_lite.checkpoint.arithmetic import interpolate
from rpam_lite.errors import RpamError
from rpam_lite.merge.models import Merge, Models, Options, Tensors
from rpam_lite.streaming.activations import PARENTS, load_layer
from rpam_lite.streaming.passes import hidden_states

IDENTITY_SHARE = 1e-3
DOWN_PROJECTION = "mlp.down_proj.weight"


def mean_absolute_inputs(models: Models, options: Options) -> dict[str, torch.Tensor]:
    """Mean absolute input of every linear layer of the base model, float32 [in], by its weight's name."""
    questions = models.calibration_set()
    sums: dict[str, torch.Tensor] = {}

    def add(name: str, inputs: torch.Tensor, real: torch.Tensor) -> None:
        total = inputs[real].abs().float().sum(0).cpu()
        sums[name] = sums[name] + total if name in sums else total

    batches = models.batches([len(ids) for ids in questions.token_ids])
    for _ in hidden_states(models.open("base", questions.token_ids), questions.token_ids, batches, add):
        pass
    tokens = sum(len(ids) for ids in questions.token_ids)
    return {name: total / tokens for name, total in sums.items()}


def activation_informed(inner: Merge) -> Merge:
    """AIM over another method on task vectors."""

    def merge(tensors: Tensors, options: Options) -> torch.Tensor:
        merged = inner(tensors, options)
        if tensors.statistic is None or tensors.base is None:
            return merged
        share = tensors.statistic / tensors.statistic.max().clamp_min(torch.finfo(torch.float32).tiny)
        return tensors.base + (merged - tensors.base) * (1 - share * (1 - options["omega"]))

    return merge


def mutual_information(one: torch.Tensor, other: torch.Tensor, bins: int) -> float:
    """Mutual information in nats of paired values, both cut into `bins` bins of equal mass.

    Args:
        one: Any shape, float32.
        other: The same shape.
        bins: At least 2.
    """
    counts = torch.bincount(_bin(one, bins) * bins + _bin(other, bins), minlength=bins * bins).double()
    joint = (counts / counts.sum()).view(bins, bins)
    independent = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    return float(torch.where(joint > 0, joint * (joint / independent).log(), 0).sum())


def _bin(values: torch.Tensor, bins: int) -> torch.Tensor:
    flat = values.flatten().contiguous()
    places = torch.arange(1, bins) * len(flat) // bins
    return torch.bucketize(flat, flat.sort().values[places])


def mutual_informations(models: Models, options: Options) -> dict[str, torch.Tensor]:
    """ACM's coefficients of Long and of Short, float32 [2], of every tensor."""
    questions = models.calibration_set()
    batches = models.batches([len(ids) for ids in questions.token_ids])
    found = []
    for layer, states in hidden_states(models.open("base", questions.token_ids), questions.token_ids, batches):
        base = torch.cat([s[p] for s, p in zip(states, questions.positions, strict=True)]).float()
        parents = load_layer(models.captured, layer, questions)[:2]
        found.append([mutual_information(base, torch.cat(p).float(), int(options["bins"])) for p in parents])
    shared = torch.tensor(found)
    shifted = shared - shared.max(0).values
    coefficients = 1 - 1 / (1 + torch.exp(-options["temperature"] * shifted))
    of_all = dict.fromkeys(models.outside_names(), coefficients.mean(0))
    for layer, own in enumerate(coefficients):
        of_all |= dict.fromkeys(models.layer_names(layer), own)
    return of_all


def weighted_task_vectors(tensors: Tensors, options: Options) -> torch.Tensor:
    """B + statistic_0 (L - B) + statistic_1 (S - B)."""
    assert tensors.base is not None
    assert tensors.statistic is not None
    of_long, of_short = tensors.task_vectors
    return tensors.base + tensors.statistic[0] * of_long + tensors.statistic[1] * of_short


def corrections(models: Models, options: Options) -> dict[str, torch.Tensor]:
    """ReACT's matrix of every decoder layer, float32 [hidden, hidden], by the name of its down projection.

    X are the merge's hidden states on the generated tokens of the questions of one label, Y the parent's
    that the label selects, both of unit length:

        C = X X^T,  B = Y X^T,  W = (B + beta U V^T) (C + beta)^-1,  U V^T from B's singular vectors

    and the two W are averaged with weights p (C + beta).
    """
    questions = models.calibration_set()
    batches = models.batches([len(ids) for ids in questions.token_ids])
    merge = models.open(options["weight"], questions.token_ids)
    return {
        down_projection(models, layer): turn(models, states, load_layer(models.captured, layer, questions)[:2], options)
        for layer, states in hidden_states(merge, questions.token_ids, batches)
    }


def down_projection(models: Models, layer: int) -> str:
    """Checkpoint name of a decoder layer's down projection.

    Raises:
        RpamError: The architecture has none.
    """
    name = models.skeleton.checkpoint_name(layer, DOWN_PROJECTION)
    if name not in models.layer_names(layer):
        raise RpamError(f"`merge.method`: the architecture has no {name} to turn; take another method.")
    return name


def turn(
    models: Models, states: Sequence[torch.Tensor], parents: Sequence[Sequence[torch.Tensor]], options: Options
) -> torch.Tensor:
    """ReACT's matrix of one layer, float32 [hidden, hidden].

    Args:
        models: For the calibration set.
        states: The merge's outputs of the layer, [length, hidden] a question.
        parents: Long's and Short's at the kept positions, [kept, hidden] a question.
        options: `long` and `beta`.
    """
    questions = models.calibration_set()
    generated = [p >= n for p, n in zip(questions.positions, questions.prompt_lengths, strict=True)]
    top = bottom = torch.zeros(())
    for label, own, share in zip(PARENTS, parents, (options["long"], 1 - options["long"]), strict=True):
        chosen = models.questions_of(label, len(questions))
        x = _unit([states[q][questions.positions[q]][generated[q]] for q in chosen])
        y = _unit([own[q][generated[q]] for q in chosen])
        weighted = share * (x.T @ x + options["beta"] * torch.eye(x.shape[1]))
        top = top + _turn(x, y, options["beta"]) @ weighted
        bottom = bottom + weighted
    solved: torch.Tensor = torch.linalg.solve(bottom, top, left=False)
    return solved


def _unit(states: list[torch.Tensor]) -> torch.Tensor:
    """Hidden states [tokens, hidden] of length 1, float32."""
    return torch.nn.functional.normalize(torch.cat(states).float(), dim=-1)


def _turn(x: torch.Tensor, y: torch.Tensor, beta: float) -> torch.Tensor:
    """(B + beta W_orth) (C + beta)^-1 of states x and y [tokens, hidden]."""
    cross = y.T @ x
    # With fewer tokens than dimensions U V^T is free on what they do not span: there, nearest to the identity.
    u, _, v = torch.linalg.svd(cross + IDENTITY_SHARE * cross.norm() * torch.eye(len(cross)))
    turned: torch.Tensor = torch.linalg.solve(x.T @ x + beta * torch.eye(x.shape[1]), cross + beta * u @ v, left=False)
    return turned


def corrected(tensors: Tensors, options: Options) -> torch.Tensor:
    """Interpolation; of a measured tensor (I + s (W - I)) times it."""
    merged = interpolate(tensors.short, tensors.long, options["weight"])
    if tensors.statistic is None:
        return merged
    return merged + options["strength"] * (tensors.statistic @ merged - merged)
