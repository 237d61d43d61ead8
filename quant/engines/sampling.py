"""Drawing the next token of many rows at once, each row with a random stream of its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from quant.engines.base import Sampling


def draw(logits: torch.Tensor, samplings: Sequence[Sampling], uniforms: Sequence[float]) -> torch.Tensor:
    """One token a row, in llama.cpp's order: top-k, top-p (at temperature 1), temperature, draw.

    A row's token depends on nothing but its own logits, sampling and uniform number.

    Args:
        logits: (rows, vocabulary), fp32.
        samplings: How each row is drawn; temperature 0 takes the likeliest token.
        uniforms: One number in [0, 1) a row; it picks a place in the row's cumulative distribution.

    Returns:
        (rows,) token ids.
    """
    likeliest = logits.argmax(-1)
    if all(s.temperature == 0 for s in samplings):
        return likeliest
    vocabulary = logits.shape[1]
    counts = [min(s.top_k, vocabulary) if s.top_k > 0 else vocabulary for s in samplings]

    def column(values: Sequence[float]) -> torch.Tensor:
        return torch.tensor(values, device=logits.device)[:, None]

    # Sorting a whole vocabulary is dear; a row that is drawn greedily needs none of it.
    width = max(k for k, s in zip(counts, samplings, strict=True) if s.temperature != 0)
    values, order = logits.topk(width, dim=-1)
    values = values.masked_fill(torch.arange(width, device=logits.device) >= column(counts), -torch.inf)
    values = _keep_top_p(values, column([s.top_p if s.top_p < 1 else torch.inf for s in samplings]))
    temperatures = column([s.temperature for s in samplings])
    cumulative = (values / temperatures.masked_fill(temperatures == 0, 1.0)).softmax(-1).cumsum(-1)
    place = torch.searchsorted(cumulative, column(uniforms) * cumulative[:, -1:], right=True)
    # Rounded up to the total, a place would lie behind the last token that is left.
    place = place.minimum(values.isfinite().sum(-1, keepdim=True) - 1)
    return torch.where(temperatures == 0, likeliest[:, None], order.gather(1, place))[:, 0]


def _keep_top_p(values: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """The fewest leading tokens that reach `top_p` together, at least one; `values` descend."""
    shares = values.softmax(-1)
    dropped = shares.cumsum(-1) - shares >= top_p
    dropped[:, 0] = False
    return values.masked_fill(dropped, -torch.inf)
