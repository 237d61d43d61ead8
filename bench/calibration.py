"""How many questions and how many lambdas pay: fits and decision rows on repeated draws, against the scalar curve.

    python -m bench.calibration [--pair DIR] [--sizes 32 128 512] [--draws 5] [--granularities layer ...]
                                [--budgets 0.8 0.6] [--points 2 5] [--ridge 0.1] [--smoothness 0.1]

Both parents answer a large pool of calibration questions once, as the recipe samples its own. Every draw takes so
many of them, evenly over the levels; every granularity is fitted on the same questions, by the pipeline's own
stages, with a decision row for every budget and every wish for points. The members answer held-out questions greedily
in llama.cpp, and each is compared with the curve of plain interpolations at its own mean tokens, and with Long. A fit
has no chance in it, so that the spread is that of the draw.

Results are kept, one line a member; interrupted, it goes on. The defaults take hours on 2 cores; `--sizes 32 128
--draws 2 --granularities layer matrix --pool 40` some tens of minutes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench.calibration_table import line, table
from bench.curve import CURVE
from bench.quality import LONG_THINK_TOKENS, ROOT, ensure, family_of, write_recipe, write_unrepeated
from bench.quality_forms import Changes
from quant.adaptivity import execution
from quant.asking import make_requests
from quant.frontier import gain_over_curve
from quant.measures import by_question
from quant.records import Record
from quant.summary import summarize
from quant.tasks.questions import load_questions
from quant.tasks.task import Task
from recipes.tiny.families import FAMILIES
from recipes.tiny.questions import question_lines
from rpam_lite.checkpoint.files import append_rows, read_rows, write_text
from rpam_lite.errors import RpamError
from rpam_lite.fit.coefficients import Coefficients, scalar
from rpam_lite.patterns.price import with_estimates
from rpam_lite.pipeline.artefacts import SCRATCH, parent_gguf
from rpam_lite.pipeline.capturing import run_capture
from rpam_lite.pipeline.deciding import by_parents, decided_members, states_of
from rpam_lite.pipeline.fitting import fit_share
from rpam_lite.pipeline.kept_fit import FIT_VERSION
from rpam_lite.pipeline.measuring import Asking, Row, measure_row, write_coefficients_gguf
from rpam_lite.pipeline.stage import Run, fingerprint, identity
from rpam_lite.pipeline.stages import donor_prompts
from rpam_lite.pipeline.traces import pattern_rows, seen_rows
from rpam_lite.pipeline.trip import STAGES
from rpam_lite.recipe import Recipe, load_recipe
from rpam_lite.terminal import fail_in_one_sentence, progress_bars

GRANULARITIES = ("scalar", "layer", "block", "matrix", "low_rank", "low_rank-4", "low_rank-8", "row")


@dataclass(frozen=True)
class Form:
    """What is measured.

    Attributes:
        sizes: Labelled questions of a draw; a decision row is fitted on all of them.
        per_class: Of either label at most, lambda is fitted on so many.
        draws: Calibration sets of each size.
        granularities: Fits of lambda on each.
        dial: The budgets, and the points that may be lost, with a decision row each.
        penalty: On lambda itself, by the recipe's names.
        pool: Questions a level that both parents answer.
        per_level: Held-out questions a level.
    """

    sizes: tuple[int, ...]
    per_class: int
    draws: int
    granularities: tuple[str, ...]
    dial: dict[str, list[float]]
    penalty: dict[str, float]
    pool: int
    per_level: int


def open_run(pair: Path, folder: Path, form: Form, progress: Any) -> Run:
    """The run whose label stage answers the pool."""
    pool = folder / f"calibration-{form.pool}.jsonl"
    changes: Changes = {
        "label": {"questions": pool.name},
        "capture": {"questions_per_class": form.per_class},
        "dial": {**form.dial, "questions": 0},
        "fit": form.penalty,
    }
    recipe = write_recipe(pair, folder, form.per_level, changes)
    if not pool.exists():
        lines = question_lines("calibration", form.pool, seed=1, family=FAMILIES[family_of(pair)])
        write_unrepeated(pool, lines, folder / f"evaluation-{form.per_level}.jsonl")
    return Run(load_recipe(recipe), folder / "run", progress, print)


def with_granularity(recipe: Recipe, granularity: str) -> Recipe:
    """The recipe with another granularity; a number after it is its rank."""
    name, _, rank = granularity.partition("-")
    fit = {"granularity": name} | ({"rank": int(rank)} if rank else {})
    return recipe.model_copy(update={"fit": recipe.fit.model_copy(update=fit)})


def drawn(rows: Sequence[dict[str, Any]], size: int, draw: int) -> list[dict[str, Any]]:
    """So many rows of patterns.jsonl, the same number of every level, in their order."""
    levels: dict[Any, list[str]] = {}
    for row in rows:
        levels.setdefault(row["level"], []).append(row["key"])
    each, fewest = size // len(levels), min(len(own) for own in levels.values())
    if not 0 < each <= fewest:
        raise RpamError(f"--sizes {size}: {len(levels)} levels have {fewest} questions at least; take another --pool.")
    keys = {key for level, own in levels.items() for key in random.Random(f"{draw}-{level}").sample(own, each)}
    return [row for row in rows if row["key"] in keys]


def captured_run(run: Run, folder: Path, rows: Sequence[dict[str, Any]]) -> Run:
    """A run of its own on these labelled questions, both parents' states captured."""
    own = replace(run, folder=folder, say=lambda message: None)
    for stage in ("label", "capture", "fit"):
        own.of(stage).mkdir(parents=True)
    write_text(own.of("label") / "patterns.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    run_capture(own)
    return own


def held_out(run: Run) -> Asking:
    """The held-out questions, as the eval stage asks them."""
    settings = run.recipe.eval
    questions = load_questions(settings.file)
    task = Task("eval", questions, settings.grader, settings.pattern, fallback=False)
    prompts, think_open = donor_prompts(run, questions)
    return Asking(questions, make_requests(questions, prompts, settings.max_tokens), think_open, task.grading)


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
    """One result a member, from the results file where it is there."""
    ensure(run, "label")
    told = [fingerprint(STAGES["label"], run.recipe), identity(folder / f"evaluation-{form.per_level}.jsonl")]
    curve_place = folder / f"curve-{hashlib.sha256(json.dumps(told).encode()).hexdigest()[:12]}"
    told += [str(FIT_VERSION), run.recipe.model_dump_json(include={"capture", "fit", "dial"})]
    place = folder / f"members-{hashlib.sha256(json.dumps(told).encode()).hexdigest()[:12]}"
    for made in (curve_place, place):
        made.mkdir(exist_ok=True)
    asking, kept = held_out(run), place / "results.jsonl"
    curve = scalar_curve(run, asking, curve_place)
    draws = {(size, draw): drawn(pattern_rows(run), size, draw) for size in form.sizes for draw in range(form.draws)}
    for (size, draw), rows in draws.items():
        names = {granularity: f"{granularity}-{size}-{draw}" for granularity in form.granularities}
        left = {granularity: name for granularity, name in names.items() if name not in read_rows(kept)}
        if left:
            with TemporaryDirectory() as temporary:
                own = captured_run(run, Path(temporary), rows)
                for granularity, name in left.items():
                    members = fitted_draw(own, granularity, asking, curve, place / name)
                    drawn_as: dict[str, Any] = {"size": size, "draw": draw, "granularity": granularity}
                    append_rows(kept, [{"key": name, "members": [drawn_as | member for member in members]}])
        found = read_rows(kept)
        for name in names.values():
            yield from found[name]["members"]


def fitted_draw(
    run: Run, granularity: str, asking: Asking, curve: Sequence[Sequence[Record]], records: Path
) -> Iterator[dict[str, Any]]:
    """Fit on what a run has captured; one result for every member that a merge of this pair can be."""
    own = replace(run, recipe=with_granularity(run.recipe, granularity))
    shutil.rmtree(own.of("fit") / SCRATCH, ignore_errors=True)  # another granularity goes on from nothing of it
    fitted, log = fit_share(own, 0, 1, lambda vector: vector)[None]
    losses = [step["loss"] for step in log["steps"]]
    seen = with_estimates(seen_rows(own))
    long_promised = float(by_parents(seen, ["long"] * len(seen))[0].mean())
    parents = {"short": by_question(curve[0]), "long": by_question(curve[-1])}
    for setting, (coefficients, told) in decided_members(own, fitted, states_of(own, fitted)).items():
        name = f"{records.name}-{setting.stem}"
        answers = measured(own, name, coefficients, asking, records.with_name(f"{name}.jsonl"))
        summary = summarize(answers, LONG_THINK_TOKENS)
        executed = execution(by_question(answers), parents["short"], parents["long"], LONG_THINK_TOKENS)
        member = {
            "name": name,
            "member": setting.name,
            "gradients": len(losses),
            "loss": [losses[0], min(losses)],
            "promised": {key: told[key] for key in ("accuracy", "tokens")},
            "execution": float(executed.mean()),
            "below_long": [long_promised - told["accuracy"], float(parents["long"].correct.mean()) - summary.accuracy],
            "tokens": summary.tokens,
            **asdict(gain_over_curve(answers, curve)),
        }
        print(line(member), flush=True)
        yield member


def main() -> None:
    parser = argparse.ArgumentParser(description="How many questions and how many lambdas pay.")
    parser.add_argument("--pair", type=Path, default=ROOT / "recipes/tiny", help="folder of a trained pair")
    parser.add_argument("--out", type=Path, default=Path("runs/calibration"), help="runs, records and results")
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 128, 512], help="questions of a draw")
    parser.add_argument("--draws", type=int, default=5, help="calibration sets of each size")
    parser.add_argument("--granularities", nargs="+", choices=GRANULARITIES, default=["layer"])
    parser.add_argument("--budgets", type=float, nargs="*", default=[0.8, 0.6], help="shares of Long's tokens")
    parser.add_argument("--points", type=float, nargs="*", default=[], help="of accuracy that may be lost to Long")
    parser.add_argument("--ridge", type=float, default=0.0, help="weight of lambda's variance")
    parser.add_argument("--smoothness", type=float, default=0.0, help="weight of lambda's steps over depth")
    parser.add_argument("--questions-per-class", type=int, default=64, help="that lambda is fitted on, at most")
    parser.add_argument("--pool", type=int, default=128, help="calibration questions a level that both parents answer")
    parser.add_argument("--per-level", type=int, default=50, help="held-out questions a level")
    args = parser.parse_args()
    form = Form(
        tuple(args.sizes),
        args.questions_per_class,
        args.draws,
        tuple(args.granularities),
        {"budgets": args.budgets, "points": args.points},
        {"ridge": args.ridge, "smoothness": args.smoothness},
        args.pool,
        args.per_level,
    )
    folder = args.out / f"calibration-{args.pair.resolve().name}"
    folder.mkdir(parents=True, exist_ok=True)
    with progress_bars() as progress:
        found = list(cells(open_run(args.pair, folder, form, progress), form, folder))
    print(f"\n{args.pair.resolve().name}, {args.per_level} held-out questions a level\n\n{table(found)}")


if __name__ == "__main__":
    fail_in_one_sentence(main)
