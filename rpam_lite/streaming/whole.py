"""A small checkpoint as one model in memory, through transformers: what the streamed and exported ones are held to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rpam_lite.checkpoint.aligned import HEAD
from rpam_lite.checkpoint.source import TensorSource
from rpam_lite.errors import RpamError

# Parameters up to which a checkpoint is also run whole, as a proof.
SMALL_MODEL = 100_000_000


def parameters_of(source: TensorSource) -> int:
    """Parameters of a checkpoint."""
    return sum(prod(source.shape(name)) for name in source.names())


def logits_of(source: TensorSource, config: Mapping[str, Any]) -> Callable[[Sequence[int]], np.ndarray]:
    """A function that gives a checkpoint's logits, float32 [positions, vocabulary], on token ids.

    Args:
        source: Its tensors.
        config: Contents of its config.json.

    Raises:
        RpamError: transformers does not know, or misses, a tensor.
    """
    model = load_whole(source, AutoConfig.for_model(**config))

    @torch.no_grad()
    def logits(token_ids: Sequence[int]) -> np.ndarray:
        found: np.ndarray = model(torch.tensor([list(token_ids)])).logits[0].numpy()
        return found

    return logits


def load_whole(source: TensorSource, config: Any) -> Any:
    """The model in memory, float32.

    Raises:
        RpamError: transformers does not know, or misses, a tensor.
    """
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    missing, unexpected = model.load_state_dict({n: source.get(n).float() for n in source.names()}, strict=False)
    if unexpected or set(missing) - {HEAD}:
        names = ", ".join([*unexpected, *missing][:3])
        raise RpamError(f"{config.model_type}: transformers does not know, or misses, {names}; check the config.")
    return model
