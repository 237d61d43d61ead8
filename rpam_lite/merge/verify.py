"""Prove a merged checkpoint: read it again and compare it with what it must be.

Of every tensor some chunks are computed anew from the parents and compared to the bit; small models
are also loaded in transformers and asked.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

from rpam_lite.checkpoint.aligned import EMBEDDING, HEAD
from rpam_lite.checkpoint.loading import load_folder
from rpam_lite.checkpoint.source import CheckpointSource
from rpam_lite.checkpoint.write import MADE_BY
from rpam_lite.errors import RpamError
from rpam_lite.merge.apply import ExactSource
from rpam_lite.streaming.whole import SMALL_MODEL, load_whole, parameters_of

CHUNK_VALUES = 1 << 20
_TOKENS = 16  # that the loaded model is asked, where it is small
# Of config.json, what the merge sets itself.
_OWN_KEYS = {"dtype", "torch_dtype", MADE_BY}


@dataclass(frozen=True)
class TensorCheck:
    """What was found of one tensor.

    Attributes:
        name: The tensor.
        compared: Values that were computed anew and compared.
        flushed: Share of them that are not 0 and became 0 in the checkpoint's type.
    """

    name: str
    compared: int
    flushed: float


def verify(
    folder: Path,
    source: ExactSource,
    config: Mapping[str, Any],
    seed: int,
    chunks: int = 4,
    step: Callable[[str], None] = lambda note: None,
) -> list[TensorCheck]:
    """Compare a merged folder with the merge it should hold.

    Args:
        folder: The merged checkpoint.
        source: The same merge, computed anew from the parents.
        config: The donor's config, which the folder's must equal but for the type and our record.
        seed: Chooses the chunks; the first and the last of every tensor are always among them.
        chunks: How many chunks of a tensor are compared at most.
        step: Called after each tensor with its name.

    Raises:
        RpamError: Something differs; the tensor and the place are named.
    """
    merged = CheckpointSource(folder)
    _compare_configs(merged, config)
    _compare_headers(merged, source)
    found = []
    for name in source.names():
        found.append(_compare(merged, source, name, random.Random(f"{seed}-{name}"), chunks))
        step(name)
    if parameters_of(merged) <= SMALL_MODEL:
        _compare_logits(merged, source, seed)
    return found


def _compare_configs(merged: CheckpointSource, config: Mapping[str, Any]) -> None:
    for key in sorted((merged.config.keys() | config.keys()) - _OWN_KEYS):
        if merged.config.get(key) != config.get(key):
            raise RpamError(
                f"{merged.folder / 'config.json'}: `{key}` is {merged.config.get(key)!r}, the donor has "
                f"{config.get(key)!r}; merge again."
            )


def _compare_headers(merged: CheckpointSource, source: ExactSource) -> None:
    if lone := sorted(set(merged.names()) ^ set(source.names())):
        raise RpamError(f"{merged.folder}: {lone[0]} is missing, or is one too many; merge again.")
    for name in source.names():
        if merged.shape(name) != source.shape(name) or merged.dtype(name) != source.dtype:
            raise RpamError(
                f"{merged.folder}: {name} is {merged.dtype(name)} of shape {merged.shape(name)}, and must be "
                f"{source.dtype} of shape {source.shape(name)}; merge again."
            )
    if merged.config.get("tie_word_embeddings") and HEAD in merged.names() and not _same(merged, HEAD, EMBEDDING):
        raise RpamError(f"{merged.folder}: its config ties the head to the embedding, and {HEAD} differs; merge again.")


def _same(merged: CheckpointSource, one: str, other: str) -> bool:
    if merged.shape(one) != merged.shape(other):
        return False
    return all(torch.equal(merged.rows(one, a, b), merged.rows(other, a, b)) for a, b in _pieces(merged.shape(one)))


def _pieces(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    rows = max(1, CHUNK_VALUES // max(1, prod(shape[1:])))
    for start in range(0, shape[0], rows):
        yield start, min(start + rows, shape[0])


def _compare(
    merged: CheckpointSource, source: ExactSource, name: str, chance: random.Random, chunks: int
) -> TensorCheck:
    pieces = list(_pieces(source.shape(name)))
    inner = pieces[1:-1]
    chosen = [pieces[0], *sorted(chance.sample(inner, min(len(inner), max(0, chunks - 2)))), pieces[-1]]
    compared = flushed = 0
    for start, stop in dict.fromkeys(chosen):
        exact = source.exact_rows(name, start, stop)
        expected, there = exact.to(source.dtype), merged.rows(name, start, stop)
        where = f"{merged.folder}: {name}, rows {start} to {stop}"
        if not torch.isfinite(there).all():
            raise RpamError(f"{where}: holds inf or NaN; set `merge: {{dtype: bfloat16}}` and merge again.")
        if not torch.equal(there, expected):
            off = float((there.float() - expected.float()).abs().max())
            raise RpamError(f"{where}: is off by up to {off:.3g} from what the parents give; merge again.")
        compared += exact.numel()
        flushed += int(((there == 0) & (exact != 0)).sum())
    return TensorCheck(name, compared, flushed / max(1, compared))


def _compare_logits(merged: CheckpointSource, source: ExactSource, seed: int) -> None:
    """The folder as transformers loads it, against the merge in memory: the same logits to the bit."""
    from transformers import AutoModelForCausalLM

    loaded = load_folder(AutoModelForCausalLM, merged.folder, "check the donor's config", dtype=torch.float32).eval()
    reference = load_whole(source, loaded.config)
    ids = torch.randint(source.shape(EMBEDDING)[0], (1, _TOKENS), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        if not torch.equal(loaded(ids).logits, reference(ids).logits):
            raise RpamError(f"{merged.folder}: transformers gives other logits than the merge in memory; merge again.")
