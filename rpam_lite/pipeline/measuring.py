"""Measure one model in llama.cpp on questions of the recipe, keeping its records."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rpam_lite.pipeline.stage import Run, identity

if TYPE_CHECKING:
    from quant.engines import Request
    from quant.records import Record
    from quant.tasks.questions import Question
    from quant.tasks.task import Grading
    from rpam_lite.fit.coefficients import Coefficients


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


def measure_row(run: Run, row: Row, asking: Asking, file: Path) -> list[Record]:
    """The row's records, from its file if they are there."""
    from quant.asking import answer_questions, kept_records, missing
    from quant.engines.llama_cpp import LlamaCppEngine

    if not (left := missing(file, asking.requests)):
        return kept_records(file, asking.requests, asking.questions, asking.grading)
    settings = run.recipe.eval
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
                on_record=lambda record: step(""),
            )
    finally:
        if row.make is not None:
            row.file.unlink(missing_ok=True)


def row_key(row: Row, asked: str) -> str:
    """Short hash of what the row's records depend on."""
    made_from = row.made_from or identity(row.file)
    return hashlib.sha256(json.dumps([made_from, asked]).encode()).hexdigest()[:16]


def write_coefficients_gguf(run: Run, coefficients: Coefficients, file: Path, name: str) -> None:
    """The merge with these coefficients, straight to GGUF, rounded as the merged checkpoint is."""
    import torch

    from export.gguf.write import write_gguf
    from rpam_lite.merge.apply import MergedSource

    recipe = run.recipe
    long, short, donor = run.pair()
    source = MergedSource(long, short, coefficients.of, getattr(torch, recipe.merge.dtype))
    write_gguf(source, donor.config, donor.folder, file, recipe.export.type, name)
