"""A merge with a decision row: the output head gains a vector in the row of one token.

    head[token] = S + lambda * (L - S) + row

rounded once. A head that is tied to the embedding becomes a tensor of its own, or the row would change what
the token means where it is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch

from rpam_lite.checkpoint.aligned import EMBEDDING, HEAD
from rpam_lite.errors import RpamError
from rpam_lite.merge.apply import MergedSource


class Decision(Protocol):
    """A token, and what its row of the head gains."""

    @property
    def token(self) -> int: ...
    @property
    def row(self) -> Sequence[float]: ...


class DecidingSource:
    """The merge below, with a decision row.

    Args:
        merged: The merge without it.
        token: Which row of the head.
        row: What it gains, float32 [hidden].
        tied: Whether the merge below reads its embedding as its head.
    """

    whole = False  # tensors may be computed some rows at a time

    def __init__(self, merged: MergedSource, token: int, row: torch.Tensor, tied: bool) -> None:
        self.merged, self.token, self.row, self.tied = merged, token, row, tied

    @property
    def dtype(self) -> torch.dtype:
        """What every tensor is rounded to."""
        return self.merged.dtype

    def names(self) -> list[str]:
        """Tensor names, sorted; the head is always among them."""
        return sorted({*self.merged.names(), HEAD})

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor."""
        return self.merged.shape(self._below(name))

    def get(self, name: str) -> torch.Tensor:
        """One merged tensor in `dtype`."""
        return self.rows(name, 0, self.shape(name)[0])

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Some rows of one merged tensor in `dtype`."""
        if name == HEAD and start <= self.token < stop:
            return self.exact_rows(name, start, stop).to(self.dtype)
        return self.merged.rows(self._below(name), start, stop)

    def exact_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Some rows of one merged tensor in fp32, before they are rounded."""
        exact = self.merged.exact_rows(self._below(name), start, stop)
        if name == HEAD and start <= self.token < stop:
            exact = exact.clone()
            exact[self.token - start] += self.row
        return exact

    def _below(self, name: str) -> str:
        return EMBEDDING if name == HEAD and self.tied else name


def with_decision(
    merged: MergedSource, config: Mapping[str, Any], decision: Decision | None
) -> tuple[MergedSource | DecidingSource, dict[str, Any]]:
    """The merge with a decision row, if it has one, and the config that goes with it.

    Args:
        merged: The merge without it.
        config: The donor's config.
        decision: Of the coefficients; None leaves merge and config as they are.

    Raises:
        RpamError: The row is not of this model.
    """
    if decision is None:
        return merged, dict(config)
    tied = bool(config.get("tie_word_embeddings"))
    rows, hidden = merged.shape(EMBEDDING if tied else HEAD)
    if len(decision.row) != hidden or decision.token >= rows:
        raise RpamError(
            f"coefficients.json: its decision row is of token {decision.token} with {len(decision.row)} values, and "
            f"the merge has {rows} tokens and {hidden} hidden dimensions; fit again."
        )
    source = DecidingSource(merged, decision.token, torch.tensor(decision.row), tied)
    return source, {**config, "tie_word_embeddings": False}
