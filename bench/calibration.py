"""How many lambdas pay at which size of the calibration set: fits on repeated draws, against the scalar curve.

    python -m bench.calibration [--pair DIR] [--sizes 32 128 512] [--draws 5] [--granularities layer ...]

Both parents answer a large pool of calibration questions once, greedily, and the answers are labelled. Every draw
takes a calibration set out of it, evenly over labels and levels; every granularity is fitted on the same sets. The
merges answer held-out questions greedily in llama.cpp, and each is compared with the curve of plain interpolations
at its own mean tokens. A fit has no chance in it, so that the spread is that of the draw.

Results are kept, one line a fit; interrupted, it goes on. The defaults take hours on 2 cores; `--sizes 32 128
--draws 2 --granularities layer matrix row --pool 40 --per-level 15` some tens of minutes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from bench.curve import CURVE
from bench.quality import LONG_THINK_TOKENS, ROOT, ensure, family_of, write_recipe
from quant.asking import make_requests
from quant.frontier import gain_over_curve
from quant.records import Record
from quant.summary import summarize
from quant.tasks.questions import load_questions
from quant.tasks.task import Task
from recipes.tiny.families import FAMILIES
from recipes.tiny.questions import question_lines
from rpam_lite.checkpoint.files import append_rows, read_rows, write_text
from rpam_lite.fit.batches import micro_batches, question_shares
from rpam_lite.fit.coefficients import Coefficients, scalar
from rpam_lite.fit.joint import Fitted, fit_jointly
from rpam_lite.fit.setup import open_problem, open_stores, open_weights, plan_recipe, with_batches
from rpam_lite.patterns.label import labelled
from rpam_lite.pipeline.artefacts import parent_gguf
from rpam_lite.pipeline.measuring import Asking, Row, measure_row, write_coefficients_gguf
from rpam_lite.pipeline.stage import Run, fingerprint, identity
from rpam_lite.pipeline.stages import donor_opens_think, donor_prompts
from rpam_lite.pipeline.traces import pattern_rows
from rpam_lite.pipeline.trip import STAGES
from rpam_lite.recipe import Fit, Recipe, load_recipe
from rpam_lite.streaming.activations import CalibrationSet
from rpam_lite.streaming.capture import calibration_set, capture, choose_questions
from rpam_lite.terminal import progress_bars

GRANULARITIES = ("layer", "block", "matrix", "low_rank", "row")
# With 1 the embedded pair's merges end beside Long, where the curve is as good whatever is fitted.
LONG_WEIGHT = 0.2


@dataclass(frozen=True)
class Form:
    """What is measured.

    Attributes:
        sizes: Questions of a calibration set, half of either label as far as there are so many.
        draws: Calibration sets of each size.
        granularities: Fits on each.
        pool: Questions a level that both parents answer.
        per_level: Held-out questions a level.
        fit: Changes to the recipe's `fit` section.
    """

    sizes: tuple[int, ...]
    draws: int
    granularities: tuple[str, ...]
    pool: int
    per_level: int
    fit: dict[str, Any]


def open_run(pair: Path, folder: Path, form: Form, progress: Any) -> Run:
    """The run whose label stage answers the pool."""
    pool = folder / f"calibration-{form.pool}.jsonl"
    if not pool.exists():
        write_text(pool, question_lines("calibration", form.pool, seed=1, family=FAMILIES[family_of(pair)]))
    changes = {"label": {"questions": pool.name, "samples": 1, "temperature": 0.0}, "fit": form.fit}
    return Run(load_recipe(write_recipe(pair, folder, form.per_level, changes)), folder / "run", progress, print)


def with_fit(recipe: Recipe, granularity: str) -> Recipe:
    """The recipe with another granularity."""
    given = recipe.fit.model_dump(exclude_unset=True) | {"granularity": granularity}
    return recipe.model_copy(update={"fit": Fit.model_validate(given)})


def capture_set(run: Run, questions: CalibrationSet, folder: Path) -> None:
    """Both parents' states on one calibration set."""
    planned = plan_recipe(run.recipe, questions, folder)
    source, ends = open_weights(planned, questions.token_ids, folder / "scratch")
    batches = micro_batches([len(t) for t in questions.token_ids], planned.plan.way.micro_tokens)
    capture(source, ends, questions, batches, run.recipe.capture.top_k, folder, planned.plan.way.dtype)


def fit_set(recipe: Recipe, questions: CalibrationSet, captured: Path) -> tuple[Coefficients, Fitted]:
    """One fit on one calibration set."""
    scratch = captured / "scratch"
    planned = plan_recipe(recipe, questions, captured, captured)
    problem = open_problem(recipe, planned, questions, captured, scratch)
    shares = question_shares(questions, recipe.fit.long_weight)
    problem = with_batches(problem, list(range(len(questions))), shares, planned.plan.way.micro_tokens)
    stores = open_stores(problem, planned.plan.way.store, scratch)
    fitted = fit_jointly(problem, problem.grouping.start_values(recipe.fit.start), stores, lambda vector: vector, None)
    return problem.grouping.coefficients(fitted.values), fitted


def held_out(run: Run) -> Asking:
    """The held-out questions, as the eval stage asks them."""
    settings = run.recipe.eval
    questions = load_questions(settings.file)
    task = Task("eval", questions, settings.grader, settings.pattern, fallback=False)
    requests = make_requests(questions, donor_prompts(run, questions), settings.max_tokens)
    return Asking(questions, requests, donor_opens_think(run), task.grading)


def measured(run: Run, name: str, coefficients: Coefficients, asking: Asking, records: Path) -> list[Record]:
    """Records of the merge with these coefficients, kept in `records`."""
    file = records.with_suffix(".gguf")
    make = partial(write_coefficients_gguf, run, coefficients, file, name)
    return measure_row(run, Row(name, "merge", None, file, make), asking, records)


def scalar_curve(run: Run, asking: Asking, folder: Path) -> list[list[Record]]:
    """Records of Short, the interpolations and Long, in order of lambda."""
    ends = [
        measure_row(run, Row(name, "parent", None, parent_gguf(run, name)), asking, folder / f"{name}.jsonl")
        for name in ("short", "long")
    ]
    between = [measured(run, f"scalar {w:g}", scalar(w), asking, folder / f"scalar-{w:g}.jsonl") for w in CURVE]
    return [ends[0], *between, ends[1]]


def cells(run: Run, form: Form, folder: Path) -> Iterator[dict[str, Any]]:
    """One result a fit, from the results file where it is there."""
    ensure(run, "label")
    told = [fingerprint(STAGES["label"], run.recipe), run.recipe.model_dump(mode="json", include={"capture", "fit"})]
    told.append(identity(folder / f"evaluation-{form.per_level}.jsonl"))
    key = hashlib.sha256(json.dumps(told, default=str).encode()).hexdigest()[:12]
    kept, place = folder / f"results-{key}.jsonl", folder / f"records-{key}"
    place.mkdir(exist_ok=True)
    asking = held_out(run)
    curve = scalar_curve(run, asking, place)
    pool = labelled(pattern_rows(run))
    torch.set_num_threads(run.recipe.threads)
    for size in form.sizes:
        for draw in range(form.draws):
            names = {g: f"{g}-{size}-{draw}" for g in form.granularities}
            found = read_rows(kept)
            with TemporaryDirectory() as temporary:
                captured = Path(temporary)
                if any(name not in found for name in names.values()):
                    chosen = choose_questions(pool, size // 2, seed=draw)
                    questions = calibration_set(chosen, run.recipe.capture)
                    capture_set(run, questions, captured)
                for granularity, name in names.items():
                    if name not in found:
                        coefficients, fitted = fit_set(with_fit(run.recipe, granularity), questions, captured)
                        records = measured(run, name, coefficients, asking, place / f"{name}.jsonl")
                        losses = [entry["loss"] for entry in fitted.curve]
                        found[name] = {
                            "key": name,
                            "granularity": granularity,
                            "size": size,
                            "draw": draw,
                            "questions": len(questions),
                            "numbers": len(fitted.values),
                            "gradients": len(losses),
                            "loss": [losses[0], min(losses)],
                            "tokens": summarize(records, LONG_THINK_TOKENS).tokens,
                            **asdict(gain_over_curve(records, curve)),
                        }
                        append_rows(kept, [found[name]])
                        print(line(found[name]), flush=True)
                    yield found[name]


def line(cell: dict[str, Any]) -> str:
    """One fit in one line."""
    return (
        f"{cell['size']} questions, draw {cell['draw']}, {cell['granularity']}: {cell['numbers']} numbers, loss "
        f"{cell['loss'][0]:.3f} -> {cell['loss'][1]:.3f}, {100 * cell['accuracy']:.1f} % at {cell['tokens']:.1f} "
        f"tokens, {100 * cell['gain']:+.1f} points ({100 * cell['low']:+.1f} to {100 * cell['high']:+.1f})"
    )


def table(found: Sequence[dict[str, Any]]) -> str:
    """Markdown: by size and granularity the mean gain over the draws, its spread, and how many are surely above 0."""
    lines = [
        "| questions | granularity | numbers | loss of the fit | tokens | right, % | over the curve, points: mean | "
        "spread of draws | worst to best | interval above 0 |",
        "|---:|---|" + "---:|" * 8,
    ]
    groups: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for cell in found:
        groups.setdefault((cell["size"], cell["granularity"]), []).append(cell)
    for (_, granularity), own in groups.items():
        gains = 100 * np.array([cell["gain"] for cell in own])
        means = {name: float(np.mean([cell[name] for cell in own])) for name in ("tokens", "accuracy", "questions")}
        spread = f"{gains.std(ddof=1):.1f}" if len(own) > 1 else "-"
        loss = float(np.mean([cell["loss"][1] for cell in own]))
        lines.append(
            f"| {means['questions']:.0f} | {granularity} | {own[0]['numbers']} | {loss:.3f} | {means['tokens']:.1f} | "
            f"{100 * means['accuracy']:.1f} | {gains.mean():+.1f} | {spread} | {gains.min():+.1f} to "
            f"{gains.max():+.1f} | {sum(cell['low'] > 0 for cell in own)} of {len(own)} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="How many lambdas pay at which size of the calibration set.")
    parser.add_argument("--pair", type=Path, default=ROOT / "recipes/tiny", help="folder of a trained pair")
    parser.add_argument("--out", type=Path, default=Path("runs/calibration"), help="runs, records and results")
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 128, 512], help="questions of a calibration set")
    parser.add_argument("--draws", type=int, default=5, help="calibration sets of each size")
    parser.add_argument("--granularities", nargs="+", choices=("scalar", *GRANULARITIES), default=GRANULARITIES)
    parser.add_argument("--pool", type=int, default=250, help="calibration questions a level that both parents answer")
    parser.add_argument("--per-level", type=int, default=50, help="held-out questions a level")
    parser.add_argument("--long-weight", type=float, default=LONG_WEIGHT, help="fit.long_weight")
    parser.add_argument("--ridge", type=float, default=0.0, help="fit.ridge")
    args = parser.parse_args()
    fit = {"long_weight": args.long_weight, "ridge": args.ridge}
    form = Form(tuple(args.sizes), args.draws, tuple(args.granularities), args.pool, args.per_level, fit)
    folder = args.out / f"calibration-{args.pair.resolve().name}"
    folder.mkdir(parents=True, exist_ok=True)
    with progress_bars() as progress:
        found = list(cells(open_run(args.pair, folder, form, progress), form, folder))
    print(
        f"\n{args.pair.resolve().name}, {args.per_level} held-out questions a level, `long_weight` {args.long_weight:g}"
    )
    print(f"\n{table(found)}")


if __name__ == "__main__":
    main()
