"""QA-Merging, against the same done with whole models: layers that differ are fitted, the others turned."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from rpam_lite.merge import activations
from rpam_lite.merge.methods import method_of
from rpam_lite.merge.models import Models, Tensors
from rpam_lite.streaming.activations import load_layer
from tests.rpam_lite.measured_models import DOWN, load, models_of
from tests.rpam_lite.models import layer_outputs


def test_qa_merging_fits_the_layers_that_differ_and_turns_the_others(folder: Path, tmp_path: Path) -> None:
    models = models_of(folder, tmp_path)
    questions = models.calibration_set()
    method, options = method_of("qa_merging", {"share": 0.5, "weight": 0.4, "contrast": 0.5})
    assert method.measure is not None
    found = method.measure(models, options)
    captured = [load_layer(folder / "capture", layer, questions)[:2] for layer in range(3)]
    apart = [
        1 - torch.cosine_similarity(torch.cat(a).float(), torch.cat(b).float(), dim=-1).mean() for a, b in captured
    ]
    chosen = sorted(range(3), key=lambda layer: -apart[layer])[:2]
    scalars = {name for name, value in found.items() if value.ndim == 0}
    downs = {name for name, value in found.items() if value.ndim == 2}
    assert downs == {DOWN.format(layer) for layer in {0, 1, 2} - set(chosen) | {2}}
    assert scalars == {n for layer in chosen for n in models.layer_names(layer)} - downs
    lambdas = [0.4] * 3
    for layer in sorted(chosen):
        at = f"model.layers.{layer}.input_layernorm.weight"
        lambdas[layer] = float(found[at])
        losses = {
            value: loss_of_layer(folder, models, lambdas, layer, value, options) for value in torch.linspace(0, 1, 11)
        }
        own = loss_of_layer(folder, models, lambdas, layer, lambdas[layer], options)
        assert own < min(losses.values()) + 5e-3 * (max(losses.values()) - min(losses.values()))
    last = found[DOWN.format(2)]
    assert torch.all(last[:, 0] == lambdas[2])
    states = [outputs[2] for outputs in outputs_of_merge(folder, models, lambdas)]
    expected = activations.turn(models, states, captured[2], options)
    torch.testing.assert_close(last[:, 1:], expected, atol=2e-3, rtol=2e-3)
    l, s = (models.sources[k].get(DOWN.format(2)) for k in ("long", "short"))  # noqa: E741
    plain = s + lambdas[2] * (l - s)
    turned = method.merge(Tensors("x", l, s, None, last), options)
    torch.testing.assert_close(turned, plain + 0.3 * (last[:, 1:] @ plain - plain))
    torch.testing.assert_close(method.merge(Tensors("x", l, s), options), s + 0.4 * (l - s))
    torch.testing.assert_close(method.merge(Tensors("x", l, s, None, torch.tensor(0.9)), options), s + 0.9 * (l - s))


def outputs_of_merge(folder: Path, models: Models, lambdas: list[float]) -> list[list[torch.Tensor]]:
    """Every question's layer outputs [length, hidden], of the merge with a lambda a layer, by transformers."""
    merge, long = load(folder, "short"), dict(load(folder, "long").named_parameters())
    with torch.no_grad():
        for name, parameter in merge.named_parameters():
            layer = int(name.split(".")[2]) if ".layers." in name else None
            parameter.lerp_(long[name], 0.4 if layer is None else lambdas[layer])
        ids = models.calibration_set().token_ids
        return [[o[0] for o in layer_outputs(merge, input_ids=q.unsqueeze(0))[0]] for q in ids]


def loss_of_layer(
    folder: Path, models: Models, lambdas: list[float], layer: int, value: Any, options: Mapping[str, float]
) -> float:
    """RPAM's loss after a layer, if that one had this lambda."""
    questions = models.calibration_set()
    outputs = outputs_of_merge(folder, models, [*lambdas[:layer], float(value), *lambdas[layer + 1 :]])
    long, short = load_layer(folder / "capture", layer, questions)[:2]
    pull = gap = push = 0.0
    for q, states in enumerate(outputs):
        pair = (long[q], short[q]) if questions.is_long[q] else (short[q], long[q])
        z, pos, neg = (t.float().flatten() for t in (states[layer][questions.positions[q]], *pair))
        pull += float((z - pos).square().sum())
        gap += float((pos - neg).square().sum())
        c, d = (torch.exp(torch.cosine_similarity(z, other, dim=0) / 0.1) for other in (pos, neg))
        push -= float(torch.log(c / (c + d)))
    return pull / gap + options["contrast"] * push / len(outputs)
