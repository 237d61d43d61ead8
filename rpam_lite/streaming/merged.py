"""Merged tensors for a given lambda, and the gradient of lambda from that of the merged tensors.

    W = S + lambda * D,    dloss/dlambda = sum(dloss/dW * D)

The arithmetic is in lambda's own type (fp32), rounded once to the type that the layer computes in.
The product with D is formed once a tensor, after dloss/dW has been summed over all questions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from rpam_lite.checkpoint.arithmetic import broadcast
from rpam_lite.streaming.codec import Pair

# By the tensor's name in the checkpoint: a scalar, [rows], or [rows, columns].
LambdaOf = Callable[[str], torch.Tensor]
# Of the tensor's name and its dloss/dlambda, of lambda's shape: adds it to a gradient.
AddGradient = Callable[[str, torch.Tensor], None]


def merged_tensor(pair: Pair, weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """S + weight * D in `dtype`."""
    short, delta = pair.decode(weight.dtype)
    return short.add_(delta.mul_(broadcast(weight, delta.ndim))).to(dtype)


def lambda_gradient(pair: Pair, gradient: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """dloss/dlambda, of the shape and type of `weight`, from dloss/dW."""
    _, delta = pair.decode(weight.dtype)
    product = delta.mul_(gradient)
    if weight.ndim == 2:
        return product
    return product.sum() if weight.ndim == 0 else product.view(len(product), -1).sum(1)


def one_parent(parent: str, device: torch.device | str = "cpu") -> LambdaOf:
    """Lambda that gives a parent's own tensors: 1 for Long, 0 for Short."""
    value = torch.tensor(1.0 if parent == "long" else 0.0, device=device)
    return lambda name: value


def merged_layer(
    pairs: Mapping[str, Pair], names: Mapping[str, str], lambda_of: LambdaOf, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """All merged tensors of a layer, by their names within the layer; `names` gives those in the checkpoint."""
    return {tensor: merged_tensor(pair, lambda_of(names[tensor]), dtype) for tensor, pair in pairs.items()}
