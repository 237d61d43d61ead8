"""A parent seen in another checkpoint's vocabulary: rows matched by token string, not by id.

DeepSeek-R1-Distill-Qwen has Qwen's ids 151643, 151646, 151648 and 151649 under other strings; a merge by id
would mix `<think>` with `<|box_start|>`. Here row i is the row of the token that the donor of the
tokenizer has at i. Where the parent knows no such token the donor's own row stands, so that L - S is 0
there and every merge keeps the donor's row to the bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rpam_lite.checkpoint.source import ParentSource

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"


@dataclass(frozen=True)
class RowMap:
    """Where the rows of a vocabulary come from.

    Attributes:
        rows: For each row of the donor the parent's row, or -1, int64 [donor rows].
        moved: Tokens that the parent has under another id.
        lone: Ids of tokens that the parent does not have.
        dropped: Tokens that only the parent has.
    """

    rows: torch.Tensor
    moved: int
    lone: tuple[int, ...]
    dropped: int

    @property
    def is_identity(self) -> bool:
        return bool((self.rows == torch.arange(len(self.rows))).all())


def match_rows(donor: Mapping[int, str], parent: Mapping[int, str], donor_rows: int, parent_rows: int) -> RowMap:
    """Match two vocabularies by token string.

    A row without a token (embeddings are often padded) is matched by id where the parent's has none either.

    Args:
        donor: Token strings by id of the tokenizer's donor.
        parent: Those of the parent.
        donor_rows: Rows of the donor's embedding.
        parent_rows: Rows of the parent's.
    """
    id_of = {text: i for i, text in sorted(parent.items(), reverse=True) if i < parent_rows}
    rows = [-1] * donor_rows
    moved, lone = 0, []
    for i in range(donor_rows):
        text = donor.get(i)
        if text is None:
            rows[i] = i if i < parent_rows and i not in parent else -1
        elif i < parent_rows and parent.get(i) == text:
            rows[i] = i
        elif text in id_of:
            rows[i], moved = id_of[text], moved + 1
        else:
            lone.append(i)
    known = {text for i, text in donor.items() if i < donor_rows}
    return RowMap(torch.tensor(rows), moved, tuple(lone), sum(text not in known for text in id_of))


class AlignedSource:
    """A parent with embedding and head in the donor's vocabulary, and with the donor's config and folder.

    Args:
        parent: The parent.
        donor: The checkpoint whose tokenizer and config the merge keeps.
        rows: From `match_rows`.
    """

    def __init__(self, parent: ParentSource, donor: ParentSource, rows: torch.Tensor) -> None:
        self.parent, self.donor, self._rows = parent, donor, rows

    @property
    def config(self) -> dict[str, Any]:
        """The donor's."""
        return self.donor.config

    @property
    def folder(self) -> Path:
        """The donor's: its tokenizer is the one that ids belong to."""
        return self.donor.folder

    @property
    def as_stored(self) -> bool:
        """Whether tensors outside the vocabulary are read as they lie on the disk."""
        return self.parent.as_stored

    def names(self) -> list[str]:
        """The parent's, with a head of its own where the donor has one."""
        return sorted((set(self.parent.names()) - {HEAD}) | ({HEAD} & set(self.donor.names())))

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor."""
        return self.donor.shape(name) if name in (EMBEDDING, HEAD) else self.parent.shape(name)

    def dtype(self, name: str) -> torch.dtype:
        """Type of one tensor; of a vocabulary's the wider of both."""
        if name in (EMBEDDING, HEAD):
            return torch.promote_types(self.parent.dtype(self._own(name)), self.donor.dtype(name))
        return self.parent.dtype(name)

    def get(self, name: str) -> torch.Tensor:
        """One tensor."""
        return self.rows(name, 0, len(self._rows)) if name in (EMBEDDING, HEAD) else self.parent.get(name)

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Some rows of one tensor."""
        if name not in (EMBEDDING, HEAD):
            return self.parent.rows(name, start, stop)
        out = torch.empty(stop - start, *self.shape(name)[1:], dtype=self.dtype(name))
        for at, row, count in _runs(self._rows[start:stop].tolist()):
            if row < 0:
                out[at : at + count] = self.donor.rows(name, start + at, start + at + count)
            else:
                out[at : at + count] = self.parent.rows(self._own(name), row, row + count)
        return out

    def read_into(self, name: str, out: torch.Tensor) -> None:
        """Read one tensor into `out`."""
        if name in (EMBEDDING, HEAD):
            out.copy_(self.get(name))
        else:
            self.parent.read_into(name, out)

    def _own(self, name: str) -> str:
        """The parent's tensor behind a name: a tied head is its embedding."""
        return name if name in self.parent.names() else EMBEDDING


def _runs(rows: list[int]) -> Iterator[tuple[int, int, int]]:
    """Stretches of consecutive rows, or of rows that are the donor's: (place, first row or -1, count)."""
    start = 0
    for i in range(1, len(rows) + 1):
        goes_on = i < len(rows) and (rows[i] == rows[i - 1] + 1 if rows[i - 1] >= 0 else rows[i] < 0)
        if not goes_on:
            yield start, rows[start], i - start
            start = i
