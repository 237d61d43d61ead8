"""`rpam eval MODEL... --tasks` and `rpam grade`: the evaluation API at the command line."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rpam_lite.checkpoint.files import write_text
from rpam_lite.errors import RpamError
from rpam_lite.pipeline.stage import Progress

if TYPE_CHECKING:
    from quant import Evaluation
    from quant.engines import Engine
    from quant.evaluation import ModelRun, Settings
    from quant.statistics import Interval
    from quant.tasks.questions import TaskFile


def evaluate_models(
    models: Sequence[str],
    opened: Callable[[str], Engine],
    tasks: Sequence[str | TaskFile],
    settings: Settings,
    limit: int | None,
    records: Path,
    filed_as: str,
    progress: Progress,
    strict: bool = False,
) -> Evaluation:
    """Evaluate models one after another, so that one at a time is in memory.

    Args:
        models: What `opened` opens.
        opened: Opens a model.
        tasks: Names of the catalogue, or files of questions.
        settings: How to ask.
        limit: The first so many questions of each task.
        records: Folder of the records.
        filed_as: See `quant.evaluate`.
        progress: Told of every completion.
        strict: Whether the grader `math` takes boxed answers only, as where a recipe is measured.
    """
    from quant.evaluating import evaluate
    from quant.evaluation import joined, require_own_names
    from quant.tasks.catalog import load_tasks

    if filed_as and len(models) > 1:
        raise RpamError(f"--filed-as {filed_as} goes with one model, not with {len(models)}.")
    _require_models(models)
    loaded = load_tasks(tasks)
    if strict:
        if all(task.grader != "math" for task in loaded):
            raise RpamError("--strict: does nothing, no task has the grader `math`; leave it out.")
        loaded = [replace(task, fallback=False) for task in loaded]
    asked = settings.samples * sum(len(task.questions[:limit]) for task in loaded)
    found: list[Evaluation] = []
    for model in models:
        engine = opened(model)
        require_own_names([run.name for evaluation in found for run in evaluation.runs] + [engine.name])
        step = progress.start(f"measuring {engine.name}", asked)
        try:
            found.append(
                evaluate(
                    engine,
                    loaded,
                    samples=settings.samples,
                    limit=limit,
                    sampling=settings.sampling,
                    max_tokens=settings.max_tokens,
                    long_think_tokens=settings.long_think_tokens,
                    records=records,
                    filed_as=filed_as,
                    on_record=lambda name, task, step=step: step(task),  # type: ignore[misc]
                )
            )
        finally:
            engine.close()
    return joined(found)


def evaluate_in_harness(
    models: Sequence[str],
    opened: Callable[[str], Engine],
    tasks: Sequence[str],
    limit: int | None,
    max_tokens: int | None,
    include: Path | None,
    tokenizer: Path | None,
    save: Path | None,
) -> None:
    """Run EleutherAI's lm-evaluation-harness through our engines and print its results.

    Args:
        models: What `opened` opens.
        opened: Opens a model.
        tasks: Names of the harness.
        limit: The first so many documents of each task.
        max_tokens: Most generated tokens; as each task says if None.
        include: Folder of more task files.
        tokenizer: Of servers, see `quant.lm_eval.run_lm_eval`.
        save: Where to write the results as JSON.
    """
    from rich.table import Table

    from quant.lm_eval import run_lm_eval
    from quant.tables import console

    _require_models(models)
    table, found = Table(title="lm-evaluation-harness", show_edge=False), {}
    for column in ("task", "model", "metric", "value", "standard error"):
        table.add_column(column, justify="right" if column in ("value", "standard error") else "left")
    for model in models:
        engine = opened(model)
        try:
            results = run_lm_eval(engine, tasks, limit, max_tokens=max_tokens, include=include, tokenizer=tokenizer)[
                "results"
            ]
        finally:
            engine.close()
        found[engine.name] = results
        for task, metrics in results.items():
            for metric, value in metrics.items():
                if isinstance(value, float) and "_stderr," not in metric:
                    error = metrics.get(metric.replace(",", "_stderr,", 1))
                    told = f"{error:.4f}" if isinstance(error, float) else ""
                    table.add_row(task, engine.name, metric, f"{value:.4f}", told)
    console().print(table)
    if save is not None:
        write_text(save, json.dumps(found, indent=2, default=str) + "\n")


def named_tasks(
    tasks: Sequence[str], fields: tuple[str, str, str], grader: str, pattern: str, instruction: str
) -> list[str | TaskFile]:
    """Tasks with the fields and the grader of those that are files.

    Args:
        tasks: Names of the catalogue, or files.
        fields: Of the question, the answer and the level.
        grader: Of files, as in `quant.tasks.questions.TaskFile`.
        pattern: Of the grader "regex", as there.
        instruction: Added to every question, as there.
    """
    from quant.tasks.benchmarks import benchmark_named
    from quant.tasks.questions import TaskFile

    question, answer, level = fields
    found: list[str | TaskFile] = []
    for task in tasks:
        is_file = benchmark_named(task.partition("@")[0]) is None and Path(task).is_file()
        file = TaskFile(Path(task), question, answer, level, grader, pattern, instruction)
        found.append(file if is_file else task)
    return found


def check_wishes(long: str, short: str, plot: Path | None) -> None:
    """What can be refused before anything is measured."""
    from quant.plot import check_format

    if bool(long) != bool(short):
        raise RpamError("--long and --short: give both parents, or none.")
    if plot is not None:
        check_format(plot)


def _require_models(models: Sequence[str]) -> None:
    """Before tasks are loaded and models measured, which may take long."""
    from quant.evaluation import require_own_names

    require_own_names([Path(model).stem for model in models if Path(model).is_file()])
    for model in models:
        if not model.startswith(("http://", "https://")) and not Path(model).exists():
            raise RpamError(f"{model}: no such model; give a GGUF file, a Hugging Face folder or a server's address.")


def tell(
    evaluation: Evaluation, long: str, short: str, curve: Sequence[str], budgets: Sequence[int], plot: Path | None
) -> None:
    """Print the tables of an evaluation.

    Args:
        evaluation: What was measured.
        long: Name of the Long parent among its models, for the measures of adaptivity; empty to leave them out.
        short: Of the Short parent, likewise.
        curve: Names of interpolations in order of lambda, for the comparison at equal tokens.
        budgets: Of generated tokens, for accuracy within them.
        plot: Where to draw accuracy against tokens.
    """
    from quant.evaluation import run_named
    from quant.tables import adaptivity_table, budget_table, console, curve_table

    evaluation.table()
    out = console()
    if budgets:
        out.print(budget_table(evaluation, sorted(budgets)))
    others = [run for run in evaluation.runs if run.name not in {long, short, *curve}]
    if long:
        parents = run_named(evaluation.runs, long), run_named(evaluation.runs, short)
        out.print(adaptivity_table({run.name: _adaptivity(run, *parents, evaluation.settings) for run in others}))
        _tell_macro_ratio(others, parents[0])
    if curve:
        out.print(curve_table(evaluation.compare(curve=curve).above))
    if plot is not None:
        evaluation.compare().plot(plot)
        out.print(f"drawn: {plot}", markup=False)


def _adaptivity(run: ModelRun, long: ModelRun, short: ModelRun, settings: Settings) -> dict[str, dict[str, Interval]]:
    """Measures of adaptivity by task, the share of long answers by level among them."""
    from quant.adaptivity import long_share, measure_adaptivity
    from quant.measures import by_question
    from quant.statistics import interval

    found = {}
    for task, rows in run.records.items():
        answers, of_short, of_long = (
            by_question(rows),
            by_question(short.records[task]),
            by_question(long.records[task]),
        )
        tokens, seed = settings.long_think_tokens, settings.sampling.seed
        found[task] = measure_adaptivity(answers, of_short, of_long, tokens, seed=seed)
        share = long_share(answers, tokens)
        for level in sorted(set(answers.levels.tolist())):
            found[task][f"long answers, level {level}"] = interval(share[answers.levels == level], seed=seed)
    return found


def _tell_macro_ratio(runs: Sequence[ModelRun], long: ModelRun) -> None:
    """The mean over tasks of length ratios, where there are several tasks."""
    from quant.adaptivity import macro_length_ratio
    from quant.measures import by_question
    from quant.tables import console

    for run in runs if len(long.records) > 1 else ():
        answers = {t: (by_question(rows), by_question(long.records[t])) for t, rows in run.records.items()}
        console().print(
            f"{run.name}: {macro_length_ratio(answers):.3f} of Long's tokens, mean over tasks", markup=False
        )


def grade_again(path: Path) -> Evaluation:
    """Grade a saved evaluation by its graders as they are now, and write it back."""
    from quant.evaluation import graded_again, read_evaluation
    from quant.tables import console

    evaluation = read_evaluation(path)
    again = graded_again(evaluation)
    changed = sum(
        a.correct != b.correct
        for old, new in zip(evaluation.runs, again.runs, strict=True)
        for task in old.records
        for a, b in zip(old.records[task], new.records[task], strict=True)
    )
    console().print(f"{changed} verdicts have changed", markup=False)
    again.save(path)
    return again
