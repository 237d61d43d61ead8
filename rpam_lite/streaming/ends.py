"""The two ends of the model: embedding rows looked up on the host, the output head in chunks.

Neither is ever whole on the device. Of the embedding only the rows of the calibration set's tokens
are read; the head is gone through some rows of the vocabulary at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from rpam_lite.checkpoint.source import ParentSource
from rpam_lite.streaming.codec import Pair
from rpam_lite.streaming.skeleton import Skeleton


class Ends:
    """Embedding, final norm and head of two parents.

    Args:
        long: The Long parent.
        short: The Short parent.
        skeleton: The architecture.
        token_ids: All tokens that will be looked up, int64 tensors of any shape.
        chunk_rows: Vocabulary rows that are merged at a time.
        keep_head: Hold the head's rows in memory between sweeps.
    """

    def __init__(
        self,
        long: ParentSource,
        short: ParentSource,
        skeleton: Skeleton,
        token_ids: Sequence[torch.Tensor],
        chunk_rows: int = 16384,
        keep_head: bool = True,
    ) -> None:
        self._long, self._short, self.skeleton = long, short, skeleton
        self.device = skeleton.device
        self.vocabulary = short.shape(skeleton.head)[0]
        self._tokens = torch.cat([ids.flatten() for ids in token_ids]).unique()  # type: ignore[no-untyped-call]
        self._embedding = self._gather(skeleton.embedding)
        self._tail = {
            name: Pair("exact", short.shape(name), [short.get(name), long.get(name)]) for name in skeleton.tail
        }
        self._starts = range(0, self.vocabulary, chunk_rows)
        self._chunk_rows = chunk_rows
        self._kept: dict[int, Pair] | None = {} if keep_head else None

    def embedding(self, ids: torch.Tensor) -> Pair:
        """Both parents' embedding rows [*ids.shape, hidden] on the device.

        Args:
            ids: int64, all of them among the tokens given at the start.
        """
        rows = torch.searchsorted(self._tokens, ids.flatten())
        parts = [part[rows].view(*ids.shape, -1).to(self.device) for part in self._embedding.parts]
        return Pair("exact", tuple(parts[0].shape), parts)

    def tail(self) -> dict[str, Pair]:
        """The tensors between the last layer and the head, by name, on the device."""
        return {name: _to(pair, self.device) for name, pair in self._tail.items()}

    def head_chunks(self) -> Iterator[tuple[int, Pair]]:
        """Every chunk of the head: its first vocabulary row, and both parents' rows."""
        for start in self._starts:
            if self._kept is not None and start in self._kept:
                yield start, self._kept[start]
                continue
            stop = min(start + self._chunk_rows, self.vocabulary)
            parts = [source.rows(self.skeleton.head, start, stop) for source in (self._short, self._long)]
            pair = _to(Pair("exact", tuple(parts[0].shape), parts), self.device)
            if self._kept is not None:
                self._kept[start] = pair
            yield start, pair

    def _gather(self, name: str) -> Pair:
        """Both parents' rows of the tokens that occur."""
        parts = [
            torch.cat([source.rows(name, start, stop) for start, stop in _ranges(self._tokens.tolist())])
            for source in (self._short, self._long)
        ]
        return Pair("exact", tuple(parts[0].shape), parts)


def _ranges(ids: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Runs of consecutive numbers in an ascending list, as (first, last + 1)."""
    start = 0
    for i in range(1, len(ids) + 1):
        if i == len(ids) or ids[i] != ids[i - 1] + 1:
            yield ids[start], ids[i - 1] + 1
            start = i


def _to(pair: Pair, device: torch.device) -> Pair:
    return Pair(pair.codec, pair.shape, [part.to(device) for part in pair.parts])
