"""Does the merge beat plain interpolation? Every method on trained pairs, against the scalar curve at equal tokens.

    python -m bench.quality [--pair DIR ...] [--out runs/quality] [--full | --sampled] [--methods NAME ...]
                            [--prices P ...] [--budgets B ...]

A pair is a folder with long/, short/ and base/, made by recipes/tiny/train.py; `family` in its pair.json
says which questions it answers. Methods see the calibration split alone, and all
are measured on the same questions of the evaluation split, greedily in llama.cpp. Interrupted, it goes on.

The short form takes 50 questions a level, fourteen to twenty interpolations and the methods that need no long fit;
--full takes 200, up to twenty-four, every method, and samples at temperature 0.6 too; --sampled is the short form,
sampled.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from bench.curve import Models, between_farthest, curve_points, in_order, partial_scalars
from bench.quality_forms import FULL_FORM, OURS, QUICK, SAMPLED, SHORT_FORM, SLOW, Changes, Form
from bench.quality_table import QUANTIZED, Measured, measured_rows, table, write_picture
from bench.routing import Rules, car, learn, self_route
from quant import evaluate
from quant.engines import Engine
from quant.engines.llama_cpp import LlamaCppEngine
from quant.tasks.catalog import load_tasks
from quant.tasks.questions import TaskFile, load_questions, read_task_file
from recipes.tiny.families import FAMILIES
from recipes.tiny.questions import question_lines
from rpam_lite.checkpoint.files import read_json, whole_file, write_json, write_text
from rpam_lite.fit.coefficients import Coefficients, scalar
from rpam_lite.pipeline.artefacts import exported_gguf, parent_gguf, quantized_gguf
from rpam_lite.pipeline.dial import fitted_members
from rpam_lite.pipeline.manifest import is_done, needed_by
from rpam_lite.pipeline.measuring import write_coefficients_gguf
from rpam_lite.pipeline.stage import Run, fingerprint
from rpam_lite.pipeline.trip import STAGES, run_one
from rpam_lite.preflight.overlap import overlaps
from rpam_lite.recipe import load_recipe
from rpam_lite.terminal import fail_in_one_sentence, progress_bars

ROOT = Path(__file__).parents[1]
MAX_TOKENS, LONG_THINK_TOKENS, PARALLEL = 320, 8, 32
QUANTIZED_SHARES = (0.8, 0.6, 0.4)  # of Long's tokens
# They answer with both models, so that both must be in memory; the table counts every token that either generates.
Build = Callable[[LlamaCppEngine, LlamaCppEngine, Rules], Engine]
ROUTING: dict[str, Build] = {"Self-Route, both models": self_route, "CAR, both models": car}


def family_of(pair: Path) -> str:
    """The family of questions that a pair answers, as its training wrote it down."""
    return str(read_json(pair / "pair.json", "the pair's description")["family"])


def write_recipe(pair: Path, folder: Path, per_level: int, changes: Changes) -> Path:
    """The shipped recipe for this pair and its questions, with one method's changes; the file's path."""
    family = FAMILIES[family_of(pair)]
    recipe = yaml.safe_load((ROOT / "recipes/tiny.yaml").read_text(encoding="utf-8"))
    recipe["name"] = folder.name
    recipe["parents"] = {name: str((pair / name).resolve()) for name in ("long", "short", "base")}
    measured = folder / f"evaluation-{per_level}.jsonl"
    calibration = folder / f"calibration-32-{per_level}.jsonl"
    if not calibration.exists():
        write_text(measured, question_lines("evaluation", per_level, seed=1, family=family))
        write_unrepeated(calibration, question_lines("calibration", 32, seed=1, family=family), measured)
    recipe["label"]["questions"], recipe["eval"]["questions"] = calibration.name, measured.name
    recipe["label"]["grader"] = recipe["eval"]["grader"] = family.grader
    recipe["quantize"]["types"] = ["Q4_K_M"]
    del recipe["dial"]
    for section, values in changes.items():
        recipe[section] = recipe.get(section, {}) | values
    written = folder / "recipe.yaml"
    write_text(written, yaml.safe_dump(recipe, sort_keys=False))
    return written


def write_unrepeated(calibration: Path, lines: str, measured: Path) -> None:
    """Write questions without those that are, or nearly are, questions of another file."""
    drawn = calibration.with_suffix(".drawn.jsonl")
    write_text(drawn, lines)
    repeated = {overlap.calibration.key for overlap in overlaps(load_questions(drawn), load_questions(measured))}
    kept = [line for number, line in enumerate(lines.splitlines(keepends=True), 1) if str(number) not in repeated]
    write_text(calibration, "".join(kept))
    drawn.unlink()


def ensure(run: Run, stage: str) -> None:
    """Run a stage, and what it needs, where that is not done for this recipe."""
    if not STAGES[stage].applies(run.recipe) or is_done(STAGES[stage], STAGES, run):
        return
    for needed in needed_by(STAGES[stage], STAGES, run.recipe):
        ensure(run, needed)
    run_one(stage, run)


def quantized_curve(points: Mapping[float, tuple[float, float]]) -> dict[str, Changes]:
    """The interpolations nearest in tokens to some budgets of the dial, as changes to the recipe by name."""
    inner = {weight: tokens for weight, (_, tokens) in points.items() if 0 < weight < 1}
    nearest = {min(inner, key=lambda weight: abs(inner[weight] - share)) for share in QUANTIZED_SHARES}
    return {f"scalar {w:g}": {"merge": {"method": "scalar", "options": {"weight": w}}} for w in sorted(nearest)}


def merged_files(run: Run, method: str, models: Path, quantized: bool) -> dict[str, Path]:
    """GGUF files of one method by name, made unless they are there; quantized too where that is wanted."""
    stages = [STAGES[name] for name in ("label", "capture", "fit", "statistics", "merge")]
    made = [fingerprint(stage, run.recipe)[:8] for stage in stages if stage.applies(run.recipe)]
    stem = f"{method.replace(' ', '-').replace(',', '')}-{'-'.join(made)}"
    wanted = {method: models / f"{stem}.gguf"}
    if quantized:
        wanted[method + QUANTIZED] = models / f"{stem}-q4_k_m.gguf"
    if not all(file.exists() for file in wanted.values()):
        ensure(run, "quantize" if len(wanted) > 1 else "export")
        for file, source in zip(wanted.values(), (exported_gguf(run), quantized_gguf(run, "Q4_K_M")), strict=False):
            with whole_file(file) as part:
                shutil.copyfile(source, part)
    return wanted


def member_files(run: Run, method: str, models: Path) -> dict[str, Path]:
    """GGUF files of all members of a method's dial by name, made unless they are there; none without a dial."""
    if not run.recipe.family.settings:
        return {}
    ensure(run, "fit")
    made = "-".join(fingerprint(STAGES[name], run.recipe)[:8] for name in ("label", "capture", "fit"))
    files = {}
    for setting, coefficients in fitted_members(run).items():
        name = setting.name if method == OURS else f"{method}, {setting.name}"
        files[name] = models / f"{setting.stem}-{made}.gguf"
        if not files[name].exists():
            write_coefficients_gguf(run, coefficients, files[name], name)
    return files


def open_file(file: Path) -> LlamaCppEngine:
    """A GGUF file as an engine."""
    return LlamaCppEngine(file, PARALLEL, threads=1)


def open_routed(build: Build, run: Run) -> Engine:
    """Both parents and a rule between them, learnt on the calibration questions."""
    long, short = (open_file(parent_gguf(run, parent)) for parent in ("long", "short"))
    calibration = read_task_file(TaskFile(run.recipe.label.file, grader=run.recipe.eval.grader))
    return build(long, short, learn(long, short, calibration, MAX_TOKENS))


def all_models(
    pair: Path, folder: Path, form: Form, progress: Any, points: Callable[[], dict[float, tuple[float, float]]]
) -> Iterator[tuple[str, str, Callable[[], Engine]]]:
    """Name, kind and engine of every model of a pair, made as they are asked for.

    `points` gives the curve as far as it is measured, for `between_farthest`.
    """
    models = folder / "models"
    models.mkdir(parents=True, exist_ok=True)

    def open_run(changes: Changes) -> Run:
        recipe = load_recipe(write_recipe(pair, folder, form.per_level, changes))
        return Run(recipe, folder / "run", progress, print)

    run = open_run({})
    ensure(run, "label")

    def interpolated(name: str, coefficients: Coefficients) -> Callable[[], Engine]:
        file = models / f"{name.replace(' ', '-')}.gguf"
        if not file.exists():
            write_coefficients_gguf(run, coefficients, file, name)
        return partial(open_file, file)

    for parent in ("Short", "Long"):
        yield parent, "curve", partial(open_file, parent_gguf(run, parent.lower()))
    for weight in form.curve:
        yield f"scalar {weight:g}", "curve", interpolated(f"scalar {weight:g}", scalar(weight))
    for _ in range(form.finer):
        if (halfway := between_farthest(points())) is None:
            break
        yield f"scalar {halfway:g}", "curve", interpolated(f"scalar {halfway:g}", scalar(halfway))
    if form.beside:
        for name, coefficients in (partial_scalars(run, 1.0) | partial_scalars(run, 0.7)).items():
            yield name, "method", interpolated(name, coefficients)
        for name, build in ROUTING.items():
            yield name, "routing", partial(open_routed, build, run)
    for method, changes in form.methods.items():
        own = open_run(changes)
        quantized = form.quantized or method == OURS
        files = merged_files(own, method, models, quantized) | member_files(own, method, models)
        for name, file in files.items():
            yield name, "method", partial(open_file, file)
    # What quantization does to plain interpolation, beside what it does to ours.
    for name, changes in quantized_curve(points()).items() if form.quantized or OURS in form.methods else ():
        files = merged_files(open_run(changes), name, models, quantized=True)
        yield name + QUANTIZED, "method", partial(open_file, files[name + QUANTIZED])


def measure_pair(pair: Path, folder: Path, form: Form) -> dict[str, Measured]:
    """Measured models of a pair, by way of sampling."""
    found: dict[str, Models] = {how: {} for how in form.samplings}
    first = found[next(iter(form.samplings))]
    with progress_bars() as progress:
        for name, kind, open_engine in all_models(
            pair, folder, form, progress, lambda: curve_points(first, LONG_THINK_TOKENS)
        ):
            (task,) = load_tasks(
                [TaskFile(folder / f"evaluation-{form.per_level}.jsonl", grader=FAMILIES[family_of(pair)].grader)]
            )
            engine = open_engine()
            try:
                for how, (sampling, samples) in form.samplings.items():
                    step = progress.start(f"{name}, {how}", samples * len(task.questions))
                    result = evaluate(
                        engine,
                        [task],
                        samples=samples,
                        sampling=sampling,
                        max_tokens=MAX_TOKENS,
                        long_think_tokens=LONG_THINK_TOKENS,
                        records=folder / "records",
                        on_record=lambda model, task, step=step: step(""),  # type: ignore[misc]
                    )
                    (run,) = result.runs
                    found[how][name] = kind, list(run.records[task.name])
            finally:
                engine.close()
    return {how: measured_rows(in_order(models), LONG_THINK_TOKENS) for how, models in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Methods against the scalar curve at equal tokens, on trained pairs.")
    parser.add_argument(
        "--pair", type=Path, nargs="+", default=[ROOT / "recipes/tiny"], help="folders of trained pairs"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/quality"), help="runs, records and results")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--full", action="store_true", help="some hours instead of 15 minutes; samples too")
    size.add_argument("--sampled", action="store_true", help="the short form, at temperature 0.6 instead of greedily")
    parser.add_argument(
        "--methods", nargs="+", choices=[*QUICK, *SLOW], metavar="NAME", help="these alone, beside the curve"
    )
    parser.add_argument("--quantized", action="store_true", help="Q4_K_M of every method too, not of ours alone")
    parser.add_argument("--prices", type=float, nargs="+", help="of a token, for the dial's members")
    parser.add_argument("--budgets", type=float, nargs="+", help="shares of Long's tokens, for the dial's members")
    args = parser.parse_args()
    form = FULL_FORM if args.full else replace(SHORT_FORM, samplings=SAMPLED) if args.sampled else SHORT_FORM
    given = {name: values for name in ("prices", "budgets") if (values := getattr(args, name))}
    if given and args.methods and OURS not in args.methods:
        parser.error(f"--{next(iter(given))}: for the members of {OURS!r}, which --methods leaves out")
    if given:
        dial = {key: value for key, value in form.methods[OURS]["dial"].items() if key not in ("prices", "budgets")}
        form = replace(form, methods=form.methods | {OURS: {"dial": dial | given}})
    form = replace(form, quantized=args.quantized)
    if args.methods:
        form = replace(form, beside=False, methods={name: (SLOW | form.methods)[name] for name in args.methods})
    results: dict[str, dict[str, Measured]] = {}
    for pair in args.pair:
        folder = args.out / f"bench-{pair.resolve().name}"
        folder.mkdir(parents=True, exist_ok=True)
        results[pair.resolve().name] = measure_pair(pair, folder, form)
    write_json(args.out / "quality.json", {"version": 1, "questions_a_level": form.per_level, "pairs": results})
    write_picture(results, args.out / "quality.png")
    for name, ways in results.items():
        for how, rows in ways.items():
            print(f"\n{name}, {how}, {form.per_level} questions a level\n\n{table(rows)}")


if __name__ == "__main__":
    fail_in_one_sentence(main)
