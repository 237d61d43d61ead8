"""Which tensors share a lambda, by name."""

from __future__ import annotations

import re
from typing import Literal

Granularity = Literal["scalar", "layer", "block", "matrix", "row", "low_rank", "element"]
DECODER_LAYER = re.compile(r"^(?:\w+\.)+layers\.(\d+)\.(.+?)(?:\.(weight|bias))?$")


def group_of(tensor: str, granularity: Granularity) -> str:
    """Name of the group of tensors that share one lambda.

    `scalar`: the whole model. `layer`: a decoder layer, the embedding, the final norm, the head.
    `block`: attention (with the norm before it) and MLP of a layer apart. `matrix`: each module of a
    layer (a bias goes with its weight). `row`: the same modules, one lambda an output row; embedding,
    final norm and head keep one each. `low_rank`: the same modules, a field over each one's matrix; norms and
    all outside the layers keep one each. `element`: the same modules, one lambda a weight.
    """
    if granularity == "scalar":
        return "model"
    match = DECODER_LAYER.match(tensor)
    if match is None:
        return tensor.removesuffix(".weight").removesuffix(".bias").split(".")[-1]
    layer, module, _ = match.groups()
    if granularity == "layer":
        return f"layers.{layer}"
    if granularity == "block":
        attention = module.startswith("self_attn") or module == "input_layernorm"
        return f"layers.{layer}.{'attention' if attention else 'mlp'}"
    return f"layers.{layer}.{module}"
