"""`eval` and `grade`: accuracy and tokens of any models on any tasks."""

from functools import partial
from pathlib import Path
from typing import Annotated, Literal, cast

import typer

from rpam_lite.checkpoint.files import is_run_folder
from rpam_lite.cli.common import RunsOption, app, refuse_others, run_stage
from rpam_lite.cli.complete import recipes_and_runs
from rpam_lite.errors import RpamError
from rpam_lite.terminal import progress_bars

# What `rpam eval --lm-eval` reads.
HARNESS_OPTIONS = frozenset(
    [
        "models",
        "tasks",
        "limit",
        "max_tokens",
        "lm_eval",
        "include",
        "tokenizer",
        "save",
        "context",
        "bits",
        "parallel",
        "threads",
        "served_model",
    ]
) | {"timeout"}


def _names_recipe(given: str) -> bool:
    return given.endswith((".yaml", ".yml")) or is_run_folder(Path(given))


@app.command("eval")
def eval_command(
    context_: typer.Context,
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="RECIPE | MODEL...",
            help="a recipe; or GGUF files, folders, servers' addresses",
            autocompletion=recipes_and_runs,
        ),
    ],
    runs: RunsOption = Path("runs"),
    tasks: Annotated[
        list[str] | None, typer.Option(help="gsm8k, math500, ... or a file of questions; repeatable")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="answers a question")] = 1,
    limit: Annotated[int | None, typer.Option(min=1, help="the first so many questions of each task")] = None,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy")] = 0.6,
    top_p: Annotated[float, typer.Option(min=0, max=1)] = 0.95,
    top_k: Annotated[int, typer.Option(min=0)] = 20,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="an answer is cut off there; 4096, with --lm-eval what each task says")
    ] = None,
    long_think_tokens: Annotated[int, typer.Option(min=1, help="an answer with so many think tokens is long")] = 32,
    context: Annotated[int | None, typer.Option(min=1, help="of GGUF files: prompt and answer")] = None,
    bits: Annotated[int, typer.Option(help="of folders: 32, 16, 8 (int8) or 4 (nf4)")] = 16,
    parallel: Annotated[int, typer.Option(min=1, help="sequences side by side")] = 16,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of llama.cpp; all cores without it")] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="of servers: folder whose template makes the prompts")] = None,
    served_model: Annotated[str, typer.Option(help="of servers: name of the model there")] = "",
    timeout: Annotated[float, typer.Option(min=1, help="of servers: seconds that one answer may take")] = 600,
    long: Annotated[str, typer.Option(help="which of the models is the Long parent: measures of adaptivity")] = "",
    short: Annotated[str, typer.Option(help="which is the Short parent")] = "",
    curve: Annotated[list[str] | None, typer.Option(help="interpolations in order of lambda; repeatable")] = None,
    budget: Annotated[list[int] | None, typer.Option(min=1, help="accuracy within so many tokens; repeatable")] = None,
    question_field: Annotated[str, typer.Option(help="of question files")] = "question",
    answer_field: Annotated[str, typer.Option(help="of question files")] = "answer",
    level_field: Annotated[str, typer.Option(help="of question files")] = "level",
    grader: Annotated[
        str, typer.Option(help="of question files: math, exact, choice, regex or package.module:function")
    ] = "math",
    pattern: Annotated[str, typer.Option(help="with --grader regex: its first group is the answer")] = "",
    instruction: Annotated[str, typer.Option(help="of question files: put behind every question")] = "",
    strict: Annotated[
        bool, typer.Option("--strict", help="math: an answer without \\boxed{} is wrong, as where recipes are measured")
    ] = False,
    records: Annotated[Path, typer.Option(help="folder of the records; a run goes on from there")] = Path("records"),
    filed_as: Annotated[str, typer.Option(help="go on with the records of this name, on another engine")] = "",
    lm_eval: Annotated[bool, typer.Option("--lm-eval", help="tasks of EleutherAI's harness, run by it")] = False,
    include: Annotated[Path | None, typer.Option(help="with --lm-eval: folder of more task files")] = None,
    save: Annotated[Path | None, typer.Option(help="write all that was measured as JSON")] = None,
    plot: Annotated[Path | None, typer.Option(help="draw accuracy against tokens")] = None,
) -> None:
    """Measure accuracy and tokens: the models of a recipe, or any models on any tasks.

    Example: rpam eval merged-q4_k_m.gguf long-q8_0.gguf --tasks gsm8k --tasks math500 --limit 200 --samples 4
    """
    if tasks is None:
        if len(models) > 1 or not (_names_recipe(models[0]) or not Path(models[0]).exists()):
            raise RpamError("--tasks: name what to measure the models on, as gsm8k or a file of questions.")
        refuse_others(context_, {"models", "runs"}, "a recipe")
        run_stage("eval", Path(models[0]), runs)
        return
    from quant import Sampling, load
    from quant.evaluation import Settings
    from rpam_lite.pipeline.eval_models import check_wishes, evaluate_in_harness, evaluate_models, named_tasks, tell

    check_wishes(long, short, plot)

    if bits not in (4, 8, 16, 32):
        raise RpamError(f"--bits {bits}: must be 4, 8, 16 or 32.")
    opened = partial(
        load,
        context=context,
        bits=cast("Literal[4, 8, 16, 32]", bits),
        parallel=parallel,
        threads=threads,
        tokenizer=tokenizer,
        served_model=served_model,
        timeout=timeout,
    )
    if lm_eval:
        refuse_others(context_, HARNESS_OPTIONS, "--lm-eval")
        evaluate_in_harness(models, opened, tasks, limit, max_tokens, include, tokenizer, save)
        return
    settings = Settings(samples, Sampling(temperature, top_p, top_k, seed), max_tokens or 4096, long_think_tokens)
    with progress_bars() as bars:
        files = named_tasks(tasks, (question_field, answer_field, level_field), grader, pattern, instruction)
        evaluation = evaluate_models(models, opened, files, settings, limit, records, filed_as, bars, strict)
    if save is not None:
        evaluation.save(save)
    tell(evaluation, long, short, curve or [], budget or [], plot)


@app.command("grade")
def grade_command(
    evaluation: Annotated[Path, typer.Argument(help="what `rpam eval --save` wrote")],
) -> None:
    """Grade saved answers again by their graders as they are now; nothing is generated.

    Example: rpam grade evaluation.json
    """
    from rpam_lite.pipeline.eval_models import grade_again

    grade_again(evaluation).table()
