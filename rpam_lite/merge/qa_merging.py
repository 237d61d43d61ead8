"""QA-Merging: a lambda for the layers where the parents differ most, a turn of the hidden states for the others.

The later version of RPAM (arXiv 2601.03506, May 2026). Decoder layers are ranked by how far the parents' hidden
states are apart. The first `share` of them get a lambda of their own, one layer at a time from the bottom on the
merged stream, which minimises RPAM's loss there:

    sum ||z - pos||^2 / sum ||pos - neg||^2 + contrast * mean of -log( e^(c/tau) / (e^(c/tau) + e^(d/tau)) )

All other tensors are S + weight (L - S), and the down projections of the other layers, and always of the last
one, are turned as by `react`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from scipy.optimize import minimize_scalar

from rpam_lite.checkpoint.arithmetic import interpolate
from rpam_lite.merge.activations import down_projection, turn
from rpam_lite.merge.models import Models, Options, Tensors
from rpam_lite.streaming.activations import CalibrationSet, load_layer
from rpam_lite.streaming.passes import OutputsAt, hidden_states

States = Sequence[torch.Tensor]  # of every question, [positions, hidden]
LAMBDA_TOLERANCE = 1e-2


def chosen_layers(divergences: Sequence[float], share: float) -> set[int]:
    """The share of the layers, rounded up, whose divergence is largest."""
    ranked = sorted(range(len(divergences)), key=lambda layer: -divergences[layer])
    return set(ranked[: math.ceil(round(share * len(divergences), 9))])


def divergence(long: States, short: States) -> float:
    """Mean over all kept positions of 1 - cosine between the parents' hidden states."""
    cosines = torch.nn.functional.cosine_similarity(torch.cat([*long]).float(), torch.cat([*short]).float(), dim=-1)
    return float(1 - cosines.mean())


def pattern_loss(merged: States, selected: States, other: States, options: Options) -> float:
    """RPAM's loss of one layer's hidden states, every question alike: gap-normalised distance and contrast."""
    pulls, gaps, pushes = [], [], []
    for z, pos, neg in zip(merged, selected, other, strict=True):
        z, pos, neg = z.float().flatten(), pos.float().flatten(), neg.float().flatten()
        pulls.append((z - pos).square().sum())
        gaps.append((pos - neg).square().sum())
        nearer = torch.cosine_similarity(z, neg, dim=0) - torch.cosine_similarity(z, pos, dim=0)
        pushes.append(torch.nn.functional.softplus(nearer / options["temperature"]))
    pull = torch.stack(pulls).sum() / torch.stack(gaps).sum().clamp_min(torch.finfo(torch.float32).tiny)
    return float(pull + options["contrast"] * torch.stack(pushes).mean())


def lambdas_and_turns(models: Models, options: Options) -> dict[str, torch.Tensor]:
    """What differs from the plain interpolation, by tensor name.

    Returns:
        Lambda of the chosen layers' tensors, float32 scalars; of a turned down projection float32
        [hidden, 1 + hidden], lambda in its first column and ReACT's matrix behind it.
    """
    questions, layers = models.calibration_set(), models.skeleton.layers

    def parents_of(layer: int) -> tuple[States, States]:
        return load_layer(models.captured, layer, questions)[:2]

    chosen = chosen_layers([divergence(*parents_of(layer)) for layer in range(layers)], options["share"])
    lambdas = dict.fromkeys(range(layers), options["weight"])

    def choose(layer: int, outputs_at: OutputsAt) -> float:
        if layer in chosen:
            lambdas[layer] = _best_lambda(questions, outputs_at, *parents_of(layer), options)
        return lambdas[layer]

    found: dict[str, torch.Tensor] = {}
    batches = models.batches([len(ids) for ids in questions.token_ids])
    merge = models.open(options["weight"], questions.token_ids)
    for layer, states in hidden_states(merge, questions.token_ids, batches, choose=choose):
        value = torch.tensor(lambdas[layer])
        if layer in chosen:
            found |= dict.fromkeys(models.layer_names(layer), value)
        if layer not in chosen or layer == layers - 1:
            matrix = turn(models, states, parents_of(layer), options)
            found[down_projection(models, layer)] = torch.cat([value.expand(len(matrix), 1), matrix], dim=1)
    return found


def _best_lambda(
    questions: CalibrationSet, outputs_at: OutputsAt, long: States, short: States, options: Options
) -> float:
    """The lambda in [0, 1] with the lowest loss, by Brent's method."""
    is_long = questions.is_long.tolist()
    selected = [a if chosen else b for a, b, chosen in zip(long, short, is_long, strict=True)]
    other = [b if chosen else a for a, b, chosen in zip(long, short, is_long, strict=True)]

    def loss(value: float) -> float:
        outputs = outputs_at(float(value))
        kept = [states[places] for states, places in zip(outputs, questions.positions, strict=True)]
        return pattern_loss(kept, selected, other, options)

    return float(minimize_scalar(loss, bounds=(0, 1), method="bounded", options={"xatol": LAMBDA_TOLERANCE}).x)


def merged_and_turned(tensors: Tensors, options: Options) -> torch.Tensor:
    """Interpolation by the tensor's lambda; of a turned down projection (I + s (W - I)) times it."""
    found = tensors.statistic
    if found is None or found.ndim == 0:
        return interpolate(tensors.short, tensors.long, options["weight"] if found is None else found)
    merged = interpolate(tensors.short, tensors.long, found[0, 0])
    return merged + options["strength"] * (found[:, 1:] @ merged - merged)
