"""The same merge as a mergekit recipe: linear, one slice a decoder layer, weights by tensor.

mergekit goes by token id and knows one weight a tensor, so that row-wise coefficients and parents of
different vocabularies can't be written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from rpam_lite.checkpoint.arithmetic import Lambda, LowRank
from rpam_lite.errors import RpamError


def mergekit_config(
    long: Path,
    short: Path,
    donor: str,
    layers: Sequence[Sequence[str]],
    outside: Sequence[str],
    lambda_of: Callable[[str], Lambda],
    dtype: str,
) -> dict[str, Any]:
    """Contents of a mergekit configuration file.

    Args:
        long: Folder of the Long parent.
        short: Folder of the Short parent.
        donor: `long` or `short`; mergekit takes config and tokenizer from there.
        layers: Names of every decoder layer's tensors.
        outside: Names of the others: embedding, final norm, head.
        lambda_of: Lambda, that of the Long parent, by tensor name.
        dtype: Of the written tensors; the arithmetic is in float32.

    Raises:
        RpamError: A tensor has more than one lambda.
    """
    parents = {"long": long, "short": short}
    order = [donor, "short" if donor == "long" else "long"]
    slices = []
    for i, names in enumerate(layers):
        # mergekit reads the embedding's weight from the first slice and norm's and head's from the last.
        edge = list(outside) if i in (0, len(layers) - 1) else []
        lambdas = {name: _one(lambda_of(name), name) for name in [*names, *edge]}
        slices.append({"sources": [_source(parents[parent], parent, i, lambdas) for parent in order]})
    return {
        "merge_method": "linear",
        "base_model": str(parents[donor]),  # whose config and tokenizer mergekit takes
        "slices": slices,
        "parameters": {"normalize": False},
        "dtype": "float32",
        "out_dtype": dtype,
    }


def _source(folder: Path, parent: str, layer: int, lambdas: dict[str, float]) -> dict[str, Any]:
    """One parent's share of one slice."""
    weights = [{"filter": name, "value": value if parent == "long" else 1 - value} for name, value in lambdas.items()]
    return {"model": str(folder), "layer_range": [layer, layer + 1], "parameters": {"weight": weights}}


def _one(value: Lambda, name: str) -> float:
    if isinstance(value, LowRank) or (isinstance(value, torch.Tensor) and value.numel() != 1):
        count = "a coefficient a weight" if isinstance(value, LowRank) else f"{value.numel()} coefficients"
        raise RpamError(
            f"{name}: has {count} and mergekit knows one a tensor; fit with `fit.granularity` layer, block or matrix."
        )
    return float(value)
