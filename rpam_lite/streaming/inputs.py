"""Squared inputs of every linear layer: what an importance matrix is made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from rpam_lite.device import in_float64
from rpam_lite.streaming.passes import Streamed, hidden_states


def squared_inputs(
    model: Streamed,
    token_ids: Sequence[torch.Tensor],
    batches: Sequence[Sequence[int]],
    on_layer: Callable[[], None] = lambda: None,
) -> dict[str, torch.Tensor]:
    """Sum over all tokens of the squared input of every linear layer of the decoder layers.

    Args:
        model: The model.
        token_ids: One int64 tensor a question.
        batches: The questions in micro-batches.
        on_layer: Called after each layer.

    Returns:
        float32 [in], by the name of the weight in the checkpoint; summed in float64.
    """
    sums: dict[str, torch.Tensor] = {}

    def add(name: str, inputs: torch.Tensor, real: torch.Tensor) -> None:
        total = in_float64(inputs[real]).square().sum(0).cpu()
        sums[name] = sums[name] + total if name in sums else total

    for _ in hidden_states(model, token_ids, batches, add):
        on_layer()
    return {name: total.float() for name, total in sums.items()}
