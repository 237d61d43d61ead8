"""The `rpam` command: arguments in, printing out, no logic.

Exit codes: 0 done; 1 something to mend, named in one sentence; 2 wrong usage; 3 `check` found a WARNING;
130 interrupted.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, cast

import typer
from rich.console import Console, RenderableType

from rpam_lite import __version__
from rpam_lite.checkpoint.files import locked
from rpam_lite.errors import RpamError
from rpam_lite.pipeline.parents import downloaded
from rpam_lite.pipeline.stage import Run
from rpam_lite.pipeline.trip import STAGES, run_all, run_one, verify_again
from rpam_lite.recipe import load_recipe
from rpam_lite.terminal import fail_in_one_sentence, progress_bars

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
app = typer.Typer(
    help="Merge a Long-CoT and a Short-CoT model into one adaptive reasoner, without training.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
)
RecipeArgument = Annotated[Path, typer.Argument(metavar="RECIPE", help="recipe file, or the name of one: tiny")]
RunsOption = Annotated[Path, typer.Option("--runs", help="folder that holds the run folders")]


def _with_run(recipe_path: Path, runs: Path, action: Callable[[Run], None]) -> None:
    with progress_bars() as bars:

        def say(text: RenderableType) -> None:
            bars.check()
            bars.progress.console.print(text, markup=False, highlight=False)

        recipe = downloaded(load_recipe(recipe_path), runs, say)
        folder = runs / recipe.name
        with locked(folder / ".lock", str(folder)):
            action(Run(recipe, folder, bars, say))


@app.command("run")
def run_command(recipe: RecipeArgument, runs: RunsOption = Path("runs")) -> None:
    """Run all stages that are not done yet, from two checkpoints to a measured GGUF file.

    Example: rpam run recipes/tiny.yaml
    """
    _with_run(recipe, runs, run_all)


@app.command("plan")
def plan_command(
    recipe: Annotated[Path | None, typer.Argument(metavar="[RECIPE]", help="recipe file or name")] = None,
    shape: Annotated[str | None, typer.Option(help="a well-known model instead, such as qwen2.5-7b")] = None,
    questions: Annotated[int, typer.Option(min=1, help="questions in the calibration set")] = 128,
    tokens: Annotated[int, typer.Option(min=2, help="prompt and response of each")] = 256,
    host: Annotated[str | None, typer.Option(help="host memory, such as 32GiB; what is free without it")] = None,
) -> None:
    """Say how capture and fit would work on cards of 8, 12, 16 and 24 GB, from configs alone.

    Example: rpam plan --shape qwen2.5-7b --host 32GiB
    """
    from rpam_lite.pipeline.planning import plan_cards
    from rpam_lite.recipe import parse_size

    loaded = load_recipe(recipe) if recipe else None
    table, full = plan_cards(loaded, shape, questions, tokens, parse_size(host, "--host") if host else None)
    console = Console(soft_wrap=True)
    console.print(table)
    console.print(full, markup=False, highlight=False)


@app.command("check")
def check_command(
    recipe: RecipeArgument,
    runs: RunsOption = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="print the findings as JSON")] = False,
) -> None:
    """Say everything that is wrong with RECIPE and its pair, before any work.

    Exit code: 0 nothing worse than INFO, 3 a WARNING, 1 an ERROR.

    Example: rpam check recipes/tiny.yaml --json
    """
    from rpam_lite.pipeline.checking import check_alone

    raise typer.Exit(check_alone(load_recipe(recipe), runs, as_json))


@app.command("verify")
def verify_command(recipe: RecipeArgument, runs: RunsOption = Path("runs")) -> None:
    """Read the merged checkpoint again and compare it with what it must be.

    Example: rpam verify recipes/tiny.yaml
    """
    _with_run(recipe, runs, verify_again)


@app.command("export")
def export_command(
    recipe: RecipeArgument,
    runs: RunsOption = Path("runs"),
    direct: Annotated[Path | None, typer.Option(help="merge into this GGUF file, without a merged checkpoint")] = None,
    file_type: Annotated[str, typer.Option("--type", help="with --direct: F32, F16, BF16 or Q8_0")] = "F16",
    mergekit: Annotated[Path | None, typer.Option(help="write the same merge as a mergekit recipe instead")] = None,
    lora: Annotated[Path | None, typer.Option(help="write it as a LoRA adapter folder over one parent instead")] = None,
    over: Annotated[str, typer.Option(help="with --lora: the parent, long or short")] = "short",
    rank: Annotated[int, typer.Option(min=1, help="with --lora: rank of every pair")] = 64,
    floor: Annotated[float, typer.Option(min=0, max=1, help="with --lora: least energy kept")] = 0.9,
) -> None:
    """Write the merged checkpoint as GGUF; or the merge as a recipe for mergekit, or as a LoRA adapter.

    Example: rpam export recipes/tiny.yaml --lora adapter --over short --rank 128
    """
    from rpam_lite.pipeline.others import write_adapter, write_direct, write_mergekit

    if direct:
        _with_run(recipe, runs, partial(write_direct, file=direct, file_type=file_type))
    elif mergekit:
        _with_run(recipe, runs, partial(write_mergekit, file=mergekit))
    elif lora:
        _with_run(recipe, runs, partial(write_adapter, folder=lora, over=over, rank=rank, floor=floor))
    else:
        _with_run(recipe, runs, partial(run_one, "export"))


ollama_app = typer.Typer(help="Put a run's quantized file on a running Ollama server.", no_args_is_help=True)
app.add_typer(ollama_app, name="ollama")


@ollama_app.command("create")
def ollama_create_command(
    name: Annotated[str, typer.Argument(help="name of the model there")],
    recipe: RecipeArgument,
    runs: RunsOption = Path("runs"),
    type_name: Annotated[str, typer.Option("--type", help="which of the run's quantized files")] = "Q4_K_M",
    host: Annotated[str, typer.Option(help="address of the server")] = "http://localhost:11434",
) -> None:
    """Create a model on a running Ollama server from a run's quantized file, and check it there.

    Example: rpam ollama create my-merge recipes/tiny.yaml --type Q4_K_M
    """
    from rpam_lite.pipeline.ollama import create_model

    _with_run(recipe, runs, partial(create_model, name=name, type_name=type_name, host=host))


@app.command("fit")
def fit_command(
    recipe: RecipeArgument,
    runs: RunsOption = Path("runs"),
    price: Annotated[
        str | None, typer.Option(help="points of accuracy that 1000 tokens must be worth, as 0,50,200: a family")
    ] = None,
    max_tokens_share: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="with --price: the most accurate within this share of Long's tokens"),
    ] = None,
    max_points_below_long: Annotated[
        float | None, typer.Option(min=0, help="with --price: the cheapest that loses at most so many points to Long")
    ] = None,
) -> None:
    """Fit the merging coefficients; with --price a family of them, of which one is chosen.

    What is given here takes the place of the recipe's `dial`; write it there to go on with `rpam run`.

    Example: rpam fit recipes/tiny.yaml --price 0,100,400 --max-tokens-share 0.8
    """
    from rpam_lite.pipeline.trip import fit_family

    if price is None:
        if max_tokens_share is not None or max_points_below_long is not None:
            raise RpamError("--max-tokens-share and --max-points-below-long choose from a family: give --price too.")
        _with_run(recipe, runs, partial(run_one, "fit"))
    else:
        wish = {"max_tokens_share": max_tokens_share, "max_points_below_long": max_points_below_long}
        _with_run(recipe, runs, partial(fit_family, prices=price, wish=wish))


@app.command("quantize")
def quantize_command(
    recipe: RecipeArgument,
    runs: RunsOption = Path("runs"),
    fit: Annotated[str | None, typer.Option(help="memory that weights, cache and buffers must fit, as 4GiB")] = None,
    budget_kld: Annotated[float | None, typer.Option(min=0, help="largest KL divergence, in nats a token")] = None,
    context: Annotated[int, typer.Option(min=1, help="with --fit: tokens of the context")] = 8192,
    cache_type: Annotated[str, typer.Option(help="with --fit: type of the cache, F16, Q8_0 or Q4_0")] = "F16",
) -> None:
    """Quantize the GGUF file to the recipe's types; or choose the type for a memory, or for a loss.

    Example: rpam quantize recipes/tiny.yaml --fit 4GiB --context 16384
    """
    from rpam_lite.pipeline.choosing import quantize_to

    if fit is not None and budget_kld is not None:
        raise RpamError("--fit and --budget-kld: give one of them.")
    if fit is None and budget_kld is None:
        _with_run(recipe, runs, partial(run_one, "quantize"))
    else:
        _with_run(
            recipe,
            runs,
            partial(quantize_to, fit=fit, budget_kld=budget_kld, context=context, cache_type=cache_type),
        )


@app.command("eval")
def eval_command(
    context_: typer.Context,
    models: Annotated[
        list[str],
        typer.Argument(metavar="RECIPE | MODEL...", help="a recipe; or GGUF files, folders, servers' addresses"),
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
        if len(models) > 1 or (not models[0].endswith((".yaml", ".yml")) and Path(models[0]).exists()):
            raise RpamError("--tasks: name what to measure the models on, as gsm8k or a file of questions.")
        _refuse_others(context_, {"models", "runs"}, "a recipe")
        _with_run(Path(models[0]), runs, partial(run_one, "eval"))
        return
    from quant import Sampling, load
    from quant.evaluation import Settings
    from rpam_lite.pipeline.evaluating import check_wishes, evaluate_in_harness, evaluate_models, named_tasks, tell

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
        _refuse_others(context_, HARNESS_OPTIONS, "--lm-eval")
        evaluate_in_harness(models, opened, tasks, limit, max_tokens, include, tokenizer, save)
        return
    settings = Settings(samples, Sampling(temperature, top_p, top_k, seed), max_tokens or 4096, long_think_tokens)
    with progress_bars() as bars:
        files = named_tasks(tasks, (question_field, answer_field, level_field), grader, pattern, instruction)
        evaluation = evaluate_models(models, opened, files, settings, limit, records, filed_as, bars)
    if save is not None:
        evaluation.save(save)
    tell(evaluation, long, short, curve or [], budget or [], plot)


def _refuse_others(context: typer.Context, read: Collection[str], what: str) -> None:
    """An option that would do nothing is refused."""
    for name in context.params:
        given = context.get_parameter_source(name)
        if name not in read and given is not None and given.name == "COMMANDLINE":
            raise RpamError(f"--{name.replace('_', '-')}: does nothing together with {what}; leave it out.")


@app.command("grade")
def grade_command(
    evaluation: Annotated[Path, typer.Argument(help="what `rpam eval --save` wrote")],
) -> None:
    """Grade saved answers again by their graders as they are now; nothing is generated.

    Example: rpam grade evaluation.json
    """
    from rpam_lite.pipeline.evaluating import grade_again

    grade_again(evaluation).table()


@app.command("methods")
def methods_command() -> None:
    """List the merge methods that a recipe can name, with what they need and their source.

    Example: rpam methods
    """
    from rpam_lite.pipeline.merging import methods_table

    Console(soft_wrap=True).print(methods_table())


def _add_stage_command(name: str) -> None:
    def command(recipe: RecipeArgument, runs: RunsOption = Path("runs")) -> None:
        _with_run(recipe, runs, lambda run: run_one(name, run))

    command.__doc__ = f"{STAGES[name].help}\n\nExample: rpam {name} recipes/tiny.yaml"
    app.command(name)(command)


for _name in STAGES:
    if _name not in ("check", "fit", "export", "quantize", "eval"):
        _add_stage_command(_name)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True)] = False,
) -> None:
    """Options before the command."""


def main() -> None:
    """Entry point of `rpam`."""
    fail_in_one_sentence(app)


if __name__ == "__main__":
    main()
