"""Write a checkpoint's weights as they are computed: some rows at a time, in place, and go on after a kill.

Every file has its final header and its full size from the start. A journal beside them counts the
chunks that are written; what was not yet safe on the disk when the machine itself went down is
written again, which the boot id tells.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from rpam_lite.checkpoint.layout import Chunk, Shard, plan_chunks, plan_shards
from rpam_lite.checkpoint.ranges import write_bytes
from rpam_lite.checkpoint.source import TensorSource
from rpam_lite.errors import RpamError
from rpam_lite.platform import allocate, boot_id

CHUNK_VALUES = 4 << 20
JOURNAL = "written.journal"
_DIGITS = 16
# Each holds a chunk of both sources and of the merge; memory, not cores, is what limits beyond these.
_MOST_WORKERS = 4
Begin = Callable[[int], Callable[[str], None]]  # starts a progress bar of so many steps


def no_progress(total: int) -> Callable[[str], None]:
    """Shows nothing."""
    return lambda note: None


def write_weights(
    source: TensorSource,
    folder: Path,
    dtype: torch.dtype,
    shard_bytes: int,
    key: str,
    begin: Begin = no_progress,
    chunk_values: int = CHUNK_VALUES,
) -> list[Shard]:
    """Write all tensors of a source as safetensors files into a folder that an earlier call may have begun.

    Args:
        source: Tensors, each rounded by the source itself to `dtype`.
        folder: Gets the files under their final names; the caller removes the journal and renames the folder
            when all is done.
        dtype: float16, bfloat16 or float32.
        shard_bytes: Most bytes of weights a file.
        key: Whatever the weights depend on; files that were begun under another key are not gone on with.
        begin: Called with the number of chunks; what it gives is called after each, those of an earlier
            call included.
        chunk_values: Most values computed at a time.

    Returns:
        The files.

    Raises:
        RpamError: A value is not finite in `dtype`, or the disk is full; what is written stays.
    """
    shapes = {name: source.shape(name) for name in source.names()}
    shards = plan_shards(shapes, dtype, shard_bytes)
    # A method that must see a tensor whole would compute it anew for every piece.
    whole = getattr(source, "whole", False)
    chunks = plan_chunks(shards, shapes, dtype, sys.maxsize if whole else chunk_values)
    with _journal(folder, shards, f"{key} {len(chunks)} chunks") as (done, note):
        _allocate(folder, shards)
        step = begin(len(chunks))
        for _ in range(done):
            step("")
        with ExitStack() as opened:
            files = {
                shard.file: opened.enter_context((folder / shard.file).open("r+b", buffering=0)) for shard in shards
            }
            for chunk, rows in _computed(source, chunks[done:]):
                _check_finite(chunk, rows, dtype)
                write_bytes(files[chunk.file], chunk.offset, rows)
                done += 1
                note(done)
                step("")
            for stream in files.values():
                os.fsync(stream.fileno())
    return shards


def _computed(source: TensorSource, chunks: Sequence[Chunk]) -> Iterator[tuple[Chunk, torch.Tensor]]:
    """The chunks' rows in order; the next ones are read and computed while one is being written."""
    with _one_thread_each() as count, ThreadPoolExecutor(count, thread_name_prefix="merge") as workers:
        waiting: deque[tuple[Chunk, Future[torch.Tensor]]] = deque()
        coming = iter(chunks)
        try:
            while True:
                while len(waiting) <= count and (chunk := next(coming, None)) is not None:
                    waiting.append((chunk, workers.submit(_rows, source, chunk)))
                if not waiting:
                    return
                chunk, rows = waiting.popleft()
                yield chunk, rows.result()
        finally:
            for _, rows in waiting:
                rows.cancel()


@contextmanager
def _one_thread_each() -> Iterator[int]:
    """As many workers as torch has threads, each with one of its own: small blocks then stay in a core's cache."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield min(threads, _MOST_WORKERS)
    finally:
        torch.set_num_threads(threads)


def _rows(source: TensorSource, chunk: Chunk) -> torch.Tensor:
    rows = (
        source.rows(chunk.tensor, chunk.start, chunk.stop) if source.shape(chunk.tensor) else source.get(chunk.tensor)
    )
    return rows.contiguous()


def _check_finite(chunk: Chunk, rows: torch.Tensor, dtype: torch.dtype) -> None:
    # NaN and inf show in the extremes, in a tenth of the time that isfinite takes.
    if rows.numel() and not all(torch.isfinite(extreme) for extreme in torch.aminmax(rows)):
        name = str(dtype).removeprefix("torch.")
        raise RpamError(
            f"{chunk.tensor}: rows {chunk.start} to {chunk.stop} hold inf or NaN as {name}; "
            "if the parents are finite, set `merge: {dtype: bfloat16}` in the recipe."
        )


def _allocate(folder: Path, shards: Sequence[Shard]) -> None:
    """Have every file in its full size with its header, so that a full disk shows before hours of work."""
    missing = [s for s in shards if not (folder / s.file).exists() or (folder / s.file).stat().st_size != s.size]
    # Where a file's room can't be kept free for it, only this says so in time.
    if sum(shard.size for shard in missing) > shutil.disk_usage(folder).free:
        raise _full(folder, missing)
    for shard in shards:
        path = folder / shard.file
        with path.open("wb" if shard in missing else "r+b") as stream:
            try:
                allocate(stream, shard.size)
            except OSError as error:
                stream.close()
                path.unlink()
                if error.errno != errno.ENOSPC:
                    raise
                raise _full(folder, missing[missing.index(shard) :]) from None
            stream.write(shard.head)


def _full(folder: Path, missing: Sequence[Shard]) -> RpamError:
    needed = sum(shard.size for shard in missing) - shutil.disk_usage(folder).free
    return RpamError(
        f"{folder}: the disk is full, {needed} bytes more are needed for the merged checkpoint; free them and run the "
        "same command again, what is written stays.",
        code="E08",
    )


@contextmanager
def _journal(folder: Path, shards: Sequence[Shard], key: str) -> Iterator[tuple[int, Callable[[int], None]]]:
    """How many chunks an earlier call wrote, and a function that notes how many are written now."""
    plan = hashlib.sha256(b"".join([key.encode(), *(shard.head for shard in shards)])).hexdigest()
    head = json.dumps({"plan": plan, "boot": boot_id()}).encode() + b"\n"
    path = folder / JOURNAL
    before = path.read_bytes() if path.exists() else b""
    done = 0
    if before.startswith(head) and before[len(head) :].isdigit():
        done = int(before[len(head) :])
    else:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        path.write_bytes(head + b"0" * _DIGITS)
    with path.open("r+b", buffering=0) as stream:

        def note(count: int) -> None:
            stream.seek(len(head))
            stream.write(b"%0*d" % (_DIGITS, count))

        yield done, note
