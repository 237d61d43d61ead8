"""Methods that look at gradients: layer-wise weights from the Fisher information, and from sensitivities.

fim    S + alpha_l T(L - S), alpha_l = sigmoid(-z_l), z the standardised log of F_l |L - S|^2, F the mean
       diagonal Fisher information of Short on random tokens, T keeps the largest share; gate projections
       get less, and a tensor whose norm drifts too far is scaled back (arXiv 2603.21705)
sens   S + weight c_l (L - S), c_l = 2 softmax over both parents of their layer's share in sum |w g|
       (arXiv 2502.12420)
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from rpam_lite.merge.models import Models, Options, Tensors
from rpam_lite.streaming.passes import Gradients, weight_gradients

GATE_PROJECTION = "gate_proj.weight"


def fisher_weights(models: Models, options: Options) -> dict[str, torch.Tensor]:
    """FIM's alpha of every tensor, float32 scalars; those outside the decoder layers get the layers' mean."""
    skeleton = models.skeleton
    generator = torch.Generator().manual_seed(models.seed)
    shape = int(options["sequences"]), int(options["tokens"])
    sequences = list(torch.randint(skeleton.config.vocab_size, shape, generator=generator))
    fisher = torch.zeros(skeleton.layers, dtype=torch.float64)
    for layer, _, _, gradients in _gradients(models, "short", sequences, [1] * len(sequences)):
        squared = sum(float(g.float().square().sum()) for g in gradients.values())
        fisher[layer] += squared / sum(g.numel() for g in gradients.values()) / len(sequences)
    norms = [sum(_squared_distance(models, name) for name in models.layer_names(i)) for i in range(skeleton.layers)]
    logs = (fisher * torch.tensor(norms, dtype=torch.float64)).clamp_min(1e-300).log()
    scores = (logs - logs.mean()) / logs.std().clamp_min(1e-12) if len(logs) > 1 else torch.zeros_like(logs)
    alphas = torch.sigmoid(-scores).float()
    return _by_layer(models, alphas, alphas.mean())


def _squared_distance(models: Models, name: str) -> float:
    long, short = models.sources["long"].get(name), models.sources["short"].get(name)
    return float((long.float() - short.float()).square().sum())


def fisher_merge(tensors: Tensors, options: Options) -> torch.Tensor:
    """S + alpha T(L - S), its norm kept near that of S."""
    assert tensors.statistic is not None
    delta = _largest(tensors.long - tensors.short, options["density"])
    weight = tensors.statistic * (options["gate"] if tensors.name.endswith(GATE_PROJECTION) else 1)
    merged = tensors.short + weight * delta
    before, after = tensors.short.norm(), merged.norm()
    drifts = before > 0 and (after / before - 1).abs() > options["drift"]
    return merged * (before / after) if drifts else merged


def _largest(delta: torch.Tensor, density: float) -> torch.Tensor:
    """The share `density` of values that are largest by magnitude; 0 for the others."""
    from peft.utils.merge_utils import magnitude_based_pruning

    return delta if density == 1 else magnitude_based_pruning(delta, density)


def sensitivity_weights(models: Models, options: Options) -> dict[str, torch.Tensor]:
    """Sens-Merging's lambda of every tensor, float32 scalars; those outside the decoder layers get `weight`.

    As in that method's release, each parent's sensitivity is taken on the answers of the other.
    """
    questions = models.calibration_set()
    shares = []
    for parent, label in (("long", "short"), ("short", "long")):
        chosen = models.questions_of(label, int(options["samples"]))
        sequences = [questions.token_ids[q] for q in chosen]
        scores = torch.zeros(models.skeleton.layers, dtype=torch.float64)
        for layer, _, tensors, gradients in _gradients(
            models, parent, sequences, [questions.prompt_lengths[q] for q in chosen]
        ):
            scores[layer] += sum(float((tensors[n].float() * g.float()).abs().sum()) for n, g in gradients.items())
        shares.append(scores / scores.norm().clamp_min(1e-300))
    of_long, of_short = options["weight"] * shares[0], (1 - options["weight"]) * shares[1]
    both = torch.softmax(torch.stack([of_long, of_short]) / options["temperature"], dim=0)
    return _by_layer(models, (2 * options["weight"] * both[0]).float(), torch.tensor(options["weight"]))


def short_plus_share(tensors: Tensors, options: Options) -> torch.Tensor:
    """S + statistic (L - S)."""
    assert tensors.statistic is not None
    return tensors.short + tensors.statistic * (tensors.long - tensors.short)


def _gradients(models: Models, model: str, sequences: list[torch.Tensor], starts: list[int]) -> Iterator[Gradients]:
    hidden = models.skeleton.config.hidden_size
    store = models.store([(1, len(ids), hidden) for ids in sequences])
    return weight_gradients(models.open(model, sequences), sequences, starts, store)


def _by_layer(models: Models, values: torch.Tensor, outside: torch.Tensor) -> dict[str, torch.Tensor]:
    found = dict.fromkeys(models.outside_names(), outside)
    for layer, value in enumerate(values):
        found |= dict.fromkeys(models.layer_names(layer), value)
    return found
