"""Measure one model in llama.cpp on questions of the recipe, keeping its records."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

from rpam_lite.errors import RpamError
from rpam_lite.pipeline.stage import Run, content_hash

if TYPE_CHECKING:
    from quant.engines import Request
    from quant.records import Record
    from quant.tasks.questions import Question
    from quant.tasks.task import Grading
    from rpam_lite.fit.coefficients import Coefficients


TOGETHER = 2**30  # bytes of models that may be in memory at once only to save time


@dataclass(frozen=True)
class Row:
    """One model to measure.

    Attributes:
        name: As the table calls it.
        kind: "parent", "scalar", "merge" or "member" of the dial's family.
        weight: Lambda of a parent or a scalar interpolation, else None.
        file: Its GGUF file.
        make: Writes the file if it is only needed for measuring (it is removed afterwards).
        made_from: Key of what `make` depends on; the file's own content where there is no `make`.
    """

    name: str
    kind: str
    weight: float | None
    file: Path
    make: Callable[[], None] | None = None
    made_from: str = ""


@dataclass(frozen=True)
class Asking:
    """The same for every row: questions, requests by key, whether their prompts open the think block, the grader."""

    questions: list[Question]
    requests: dict[str, Request]
    think_open: bool
    grading: Grading


def measure_rows(run: Run, rows: Mapping[Path, Row], asking: Asking) -> dict[Path, list[Record]]:
    """Records of every row by their file; several models at once where they are small and the threads allow it.

    An interrupt, or the failure of one, stops every model at its next answer; what has ended is kept.
    """
    stop = Event()
    at_once = models_at_once(run.recipe.threads // run.recipe.engine_threads, rows.values())
    if at_once == 1:
        return {file: measure_row(run, row, asking, file) for file, row in rows.items()}
    with ThreadPoolExecutor(at_once) as pool:
        measured = {file: pool.submit(measure_row, run, row, asking, file, stop) for file, row in rows.items()}
        try:
            while wait(measured.values(), timeout=1).not_done:
                for future in measured.values():
                    if future.done():
                        future.result()  # raises what ended it
            return {file: future.result() for file, future in measured.items()}
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def models_at_once(engines: int, rows: Iterable[Row]) -> int:
    """How many of so many engines may run side by side; files that are yet to be made are as large as the others."""
    largest = max((row.file.stat().st_size for row in rows if row.file.exists()), default=TOGETHER)
    return max(1, min(engines, TOGETHER // max(1, largest)))


def measure_row(run: Run, row: Row, asking: Asking, file: Path, stop: Event | None = None) -> list[Record]:
    """The row's records, from its file if they are there; once `stop` is set, no more than what has ended is kept."""
    from quant.asking import answer_questions, kept_records, missing
    from quant.engines.llama_cpp import LlamaCppEngine

    if not (left := missing(file, asking.requests)):
        return kept_records(file, asking.requests, asking.questions, asking.grading)
    settings = run.recipe.eval

    def on_record(record: Record) -> None:
        if stop is not None and stop.is_set():
            raise RpamError(f"{row.name}: another model failed.")
        step("")

    step = run.progress.start(f"measuring {row.name}", len(left))
    if row.make is not None:
        row.make()
    try:
        with LlamaCppEngine(row.file, settings.parallel, run.recipe.engine_threads) as engine:
            return answer_questions(
                engine,
                asking.questions,
                file,
                settings.max_tokens,
                prompts={r.key.rpartition("/")[0]: r.prompt for r in asking.requests.values()},
                think_open=asking.think_open,
                grading=asking.grading,
                on_record=on_record,
            )
    finally:
        if row.make is not None:
            row.file.unlink(missing_ok=True)


def row_key(row: Row, asked: str) -> str:
    """Short hash of what the row's records depend on."""
    made_from = row.made_from or content_hash(row.file).hex()
    return hashlib.sha256(json.dumps([made_from, asked]).encode()).hexdigest()[:16]


def write_coefficients_gguf(run: Run, coefficients: Coefficients, file: Path, name: str) -> None:
    """The merge with these coefficients, straight to GGUF, rounded as the merged checkpoint is."""
    import torch

    from export.gguf.write import write_gguf
    from rpam_lite.merge.apply import MergedSource
    from rpam_lite.merge.decision import with_decision

    recipe = run.recipe
    long, short, donor = run.pair()
    merged = MergedSource(long, short, coefficients.of, getattr(torch, recipe.merge.dtype))
    source, config = with_decision(merged, donor.config, coefficients.decision)
    write_gguf(source, config, donor.folder, file, recipe.export.type, name)
