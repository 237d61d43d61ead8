"""One gradient of the fit the naive way: both parents and the merge resident, one graph a micro-batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from rpam_lite.fit import objective
from rpam_lite.fit.batches import LayerTargets
from rpam_lite.fit.gradient import layer_terms
from rpam_lite.fit.problem import LAYER_TERMS, TERMS, Problem, weighted_terms


def naive_step(problem: Problem, short: Any, long: Mapping[str, torch.Tensor]) -> Callable[[], torch.Tensor]:
    """A function that computes what `joint_gradient` does, with plain autograd.

    Args:
        problem: The objective; its output alignment and terms on hidden states are computed.
        short: The Short parent as transformers loads it, on the problem's device.
        long: The Long parent's tensors by name, there too.
    """
    device = problem.device
    of_short = {name: parameter.detach() for name, parameter in short.named_parameters()}
    layers = len(short.model.layers)
    targets = [LayerTargets(problem.captured, problem.questions, i) for i in range(layers)]
    values = torch.full((len(problem.grouping),), 0.5, device=device, requires_grad=True)
    weights = weighted_terms(problem).to(device)
    outputs: list[torch.Tensor] = []
    for layer in short.model.layers:
        layer.register_forward_hook(lambda module, args, output: outputs.append(output))

    def step() -> torch.Tensor:
        merged = {}
        for name, tensor in of_short.items():
            base = tensor.float()
            found = base + problem.grouping.of(values, name) * (long[name].float() - base)
            merged[name] = found.to(problem.dtype)
        gradient = torch.zeros_like(values)
        for batch in problem.batches:
            outputs.clear()
            asked = {"input_ids": batch.ids.to(device), "use_cache": False}
            rows, columns = batch.target_rows.to(device), batch.target_columns.to(device)
            logits = torch.func.functional_call(short, merged, kwargs=asked).logits[rows, columns].float()
            terms = torch.zeros(LAYER_TERMS, device=device)
            for i, states in enumerate(outputs):
                selected, other = targets[i].of(batch, device, torch.float32)
                index = batch.positions.to(device).unsqueeze(-1).expand(-1, -1, states.shape[-1])
                kept = states.gather(1, index).float()
                terms = terms + layer_terms(kept, selected, other, targets[i].mean_gap, batch, problem.settings)
            logprobs = logits.log_softmax(-1).gather(-1, batch.targets.ids.to(device))
            kl = objective.kl_to_targets(logprobs, batch.targets.logprobs.to(device), batch.targets.tail.to(device))
            by_question = objective.sum_by_question(batch.target_weights.to(device) * kl, rows, len(batch.shares))
            kl_loss = (batch.shares.to(device) * by_question).sum()
            loss = (weights[:LAYER_TERMS] * terms).sum() / layers + weights[TERMS.index("kl")] * kl_loss
            gradient += torch.autograd.grad(loss, values, retain_graph=True)[0]
        return gradient

    return step
