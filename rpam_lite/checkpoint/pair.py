"""Open parents: a whole checkpoint or an adapter over its base; and both in one vocabulary."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from rpam_lite.checkpoint.adapter import AdapterSource
from rpam_lite.checkpoint.aligned import EMBEDDING, AlignedSource, RowMap, match_rows
from rpam_lite.checkpoint.files import adapter_base
from rpam_lite.checkpoint.source import CheckpointSource, ParentSource
from rpam_lite.checkpoint.vocabulary import tokens_by_id
from rpam_lite.errors import RpamError


class Pair(NamedTuple):
    """Both parents in the donor's vocabulary, and the donor."""

    long: ParentSource
    short: ParentSource
    donor: ParentSource


def open_parent(path: Path, base: Path | None = None) -> ParentSource:
    """A parent checkpoint, or a LoRA adapter over `base` (or over the local folder that it names).

    Raises:
        RpamError: As `CheckpointSource` and `AdapterSource`; or an adapter's base is not at hand.
    """
    folder = adapter_base(path, base)
    if folder is None:
        return CheckpointSource(path)
    if not folder.is_dir():
        raise RpamError(
            f"{path}: is a LoRA adapter over {str(folder)!r}; put that checkpoint's folder under `parents.base`."
        )
    return AdapterSource(CheckpointSource(folder), path)


def stored_bytes(parents: Iterable[ParentSource]) -> int:
    """Bytes that the widest parameter of these checkpoints takes."""
    return max(parent.dtype(name).itemsize for parent in parents for name in parent.names())


def open_pair(long: Path, short: Path, base: Path | None, donor: str) -> Pair:
    """Both parents in the vocabulary of the donor of the tokenizer.

    Args:
        long: Folder of the Long parent.
        short: Folder of the Short parent.
        base: The checkpoint that an adapter belongs to.
        donor: `long` or `short`: whose config and tokenizer the merge keeps.

    Raises:
        RpamError: As `open_parent`.
    """
    opened = {"long": open_parent(long, base), "short": open_parent(short, base)}
    giver = opened[donor]
    return Pair(aligned(opened["long"], giver), aligned(opened["short"], giver), giver)


def aligned(parent: ParentSource, donor: ParentSource) -> ParentSource:
    """The parent in the donor's vocabulary; itself where that is its own."""
    if parent is donor or parent.folder == donor.folder:
        return parent
    rows = row_map(parent, donor)
    if rows.is_identity and parent.shape(EMBEDDING) == donor.shape(EMBEDDING) and parent.names() == donor.names():
        return parent
    return AlignedSource(parent, donor, rows.rows)


def row_map(parent: ParentSource, donor: ParentSource) -> RowMap:
    """How the rows of a parent's vocabulary are matched with the donor's."""
    return match_rows(
        tokens_by_id(donor.folder),
        tokens_by_id(parent.folder),
        donor.shape(EMBEDDING)[0],
        parent.shape(EMBEDDING)[0],
    )
