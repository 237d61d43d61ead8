"""Streamed passes over one model give what the whole model in transformers gives."""

from __future__ import annotations

from pathlib import Path

import torch

from rpam_lite.streaming.passes import hidden_states, weight_gradients
from tests.rpam_lite.measured_models import gradients_of, linear_inputs, load, models_of
from tests.rpam_lite.models import layer_outputs


def test_a_pass_gives_the_models_hidden_states_and_linear_inputs(folder: Path, tmp_path: Path) -> None:
    models, base = models_of(folder, tmp_path), load(folder, "base")
    ids = models.calibration_set().token_ids
    seen: dict[str, list[torch.Tensor]] = {}

    def see(name: str, inputs: torch.Tensor, real: torch.Tensor) -> None:
        seen.setdefault(name, []).append(inputs[real])

    batches = models.batches([len(t) for t in ids])
    states = dict(hidden_states(models.open("base", ids), ids, batches, see))
    assert len(batches) > 1
    for q, question in enumerate(ids):
        outputs, _ = layer_outputs(base, input_ids=question.unsqueeze(0))
        for layer, output in enumerate(outputs):
            torch.testing.assert_close(states[layer][q], output[0].detach(), atol=1e-5, rtol=1e-5)
    expected = linear_inputs(base, ids[batches[0][0]])
    assert seen.keys() == expected.keys()
    for name, inputs in expected.items():
        torch.testing.assert_close(torch.cat(seen[name])[: len(inputs)], inputs, atol=1e-5, rtol=1e-5)


def test_weight_gradients_are_those_of_back_propagation(folder: Path, tmp_path: Path) -> None:
    models, long = models_of(folder, tmp_path), load(folder, "long")
    ids, starts = models.calibration_set().token_ids[:3], [1, 4, 6]
    store = models.store([(1, len(t), 32) for t in ids])
    compared = 0
    for _, s, tensors, gradients in weight_gradients(models.open("long", ids), ids, starts, store):
        expected = gradients_of(long, ids[s], starts[s])
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, expected[name], atol=1e-6, rtol=1e-4)
            torch.testing.assert_close(tensors[name], long.state_dict()[name], atol=1e-6, rtol=1e-5)
            compared += 1
    assert compared == 3 * len(expected)
