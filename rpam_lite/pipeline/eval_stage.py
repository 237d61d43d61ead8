"""The eval stage: every row of the closing table, measured in llama.cpp on the held-out questions.

Records of each row are kept under a key made of all that they depend on, so that a new fit does not
measure the parents and the scalar curve again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rpam_lite.checkpoint.files import write_json
from rpam_lite.pipeline.artefacts import exported_gguf, parent_gguf, quantized_gguf
from rpam_lite.pipeline.dial import member_row, other_members
from rpam_lite.pipeline.measuring import Asking, Row, measure_rows, row_key, write_coefficients_gguf
from rpam_lite.pipeline.stage import Run, identity, parent_folders
from rpam_lite.pipeline.stages import donor_prompts
from rpam_lite.run_files import EVALUATION

if TYPE_CHECKING:
    from quant.records import Record
    from quant.statistics import Interval

LONG, SHORT = "Long", "Short"


def rows(run: Run) -> list[Row]:
    """Long and Short, the scalar curve between them, the merge at every quantization, and the dial's other members."""
    recipe = run.recipe
    parents = " ".join(identity(folder) for folder in parent_folders(recipe))
    listed = [Row(SHORT, "parent", 0.0, parent_gguf(run, "short")), Row(LONG, "parent", 1.0, parent_gguf(run, "long"))]
    for weight in sorted(set(recipe.eval.scalar_curve)):
        file = run.of("eval") / f"scalar-{weight:g}.gguf"
        made_from = f"{parents} {weight:g} {recipe.merge.dtype} {recipe.merge.donor} {recipe.export.type}"
        make = partial(_write_scalar, run, weight, file)
        listed.append(Row(f"Scalar {weight:g}", "scalar", weight, file, make, made_from))
    listed.append(Row(f"Merge {recipe.export.type.lower()}", "merge", None, exported_gguf(run)))
    listed += [Row(f"Merge {t}", "merge", None, quantized_gguf(run, t)) for t in recipe.quantize.types]
    listed += [member_row(run, *member, folder=run.of("eval")) for member in other_members(run).items()]
    return listed


def run_eval(run: Run) -> None:
    """Measure every row and write evaluation.json, the comparison with the scalar curve in it."""
    from quant.adaptivity import measure_adaptivity
    from quant.asking import make_requests, missing
    from quant.frontier import gain_over_coin, gain_over_curve
    from quant.measures import by_question
    from quant.records import RECORD_VERSION
    from quant.tasks.questions import read_task_file
    from rpam_lite.preflight.questions import grading_of, task_file

    settings, folder = run.recipe.eval, run.of("eval")
    questions = read_task_file(task_file(run.recipe.eval))
    prompts, think_open = donor_prompts(run, questions)
    asked = json.dumps([RECORD_VERSION, settings.max_tokens])
    listed = rows(run)
    files = {row.name: folder / f"records-{row_key(row, asked)}.jsonl" for row in listed}
    requests = make_requests(questions, prompts, settings.max_tokens)
    asking = Asking(questions, requests, think_open, grading_of(settings, questions))
    if done := sum(not missing(file, asking.requests) for file in files.values()):
        run.say(f"{done} of {len(listed)} models are measured already")
    found = measure_rows(run, {files[row.name]: row for row in listed}, asking)
    measured = {row.name: found[files[row.name]] for row in listed}
    for stale in [*folder.glob("scalar-*"), *folder.glob("member-*")]:
        stale.unlink()
    between = sorted((row for row in listed if row.weight is not None), key=lambda row: row.weight or 0.0)
    curve = [measured[row.name] for row in between]
    results = []
    parents = {row.name: by_question(measured[row.name]) for row in listed if row.kind == "parent"}
    for row in listed:
        result = _summary(row, measured[row.name], settings.long_think_tokens, run.recipe.seed)
        result["records"] = files[row.name].name
        if row.kind in ("merge", "member"):
            result["over_curve"] = asdict(gain_over_curve(measured[row.name], curve, run.recipe.seed))
            result["over_coin"] = asdict(
                gain_over_coin(measured[row.name], measured[SHORT], measured[LONG], run.recipe.seed)
            )
            adaptivity = measure_adaptivity(
                by_question(measured[row.name]),
                parents[SHORT],
                parents[LONG],
                settings.long_think_tokens,
                seed=run.recipe.seed,
            )
            result["adaptivity"] = _told(adaptivity)
        results.append(result)
    write_json(run.folder / EVALUATION, {"version": 2, "questions": len(questions), "rows": results})


def _summary(row: Row, records: list[Record], long_think_tokens: int, seed: int) -> dict[str, Any]:
    """The row of evaluation.json."""
    from quant.measures import by_question, measure
    from quant.summary import summarize, summarize_by_level

    levels = summarize_by_level(records, long_think_tokens)
    return {
        "name": row.name,
        "kind": row.kind,
        "weight": row.weight,
        **asdict(summarize(records, long_think_tokens)),
        "intervals": _told(measure(by_question(records), seed=seed)),
        "levels": {level: asdict(summary) for level, summary in levels.items()},
    }


def _told(intervals: Mapping[str, Interval]) -> dict[str, list[float] | None]:
    """Value and ends of each interval; None where it is not defined."""
    return {n: None if isnan(i.value) else [i.value, i.low, i.high] for n, i in intervals.items()}


def _write_scalar(run: Run, weight: float, file: Path) -> None:
    """Plain interpolation with one number."""
    from rpam_lite.fit.coefficients import scalar

    write_coefficients_gguf(run, scalar(weight), file, f"{run.recipe.name}-scalar-{weight:g}")
