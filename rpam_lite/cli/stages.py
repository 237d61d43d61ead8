"""The trip at the command line: `run`, each of its stages alone, and what is asked before and after it."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from rpam_lite.cli.common import (
    DeviceMemoryOption,
    JsonOption,
    RecipeArgument,
    RunsOption,
    app,
    print_json,
    refuse_others,
    run_stage,
    with_run,
)
from rpam_lite.cli.complete import recipes_and_runs
from rpam_lite.errors import RpamError
from rpam_lite.pipeline.names import STAGE_HELP


@app.command("run")
def run_command(
    recipe: RecipeArgument,
    runs: RunsOption = Path("runs"),
    device_memory: DeviceMemoryOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would happen and cost; touch nothing")] = False,
) -> None:
    """Run all stages that are not done yet, from two checkpoints to a measured GGUF file.

    Example: rpam run recipes/tiny.yaml --dry-run
    """
    if dry_run:
        from rpam_lite.pipeline.dry_run import dry_run as told
        from rpam_lite.pipeline.opening import opened

        console = Console(soft_wrap=True)
        for part in told(opened(recipe, runs, device_memory)):
            console.print(part, markup=False, highlight=False)
        return
    from rpam_lite.pipeline.trip import run_all

    with_run(recipe, runs, run_all, device_memory)


@app.command("plan")
def plan_command(
    recipe: Annotated[
        Path | None,
        typer.Argument(metavar="[RECIPE]", help="recipe file or name", autocompletion=recipes_and_runs),
    ] = None,
    shape: Annotated[str | None, typer.Option(help="a well-known model instead, such as qwen2.5-7b")] = None,
    questions: Annotated[
        int | None, typer.Option(min=1, help="in the calibration set; without it the recipe's, or 128")
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(min=2, help="prompt and response of each; without it by the recipe, or 256")
    ] = None,
    device_memory: DeviceMemoryOption = None,
    host: Annotated[str | None, typer.Option(help="host memory, such as 32GiB; what is free without it")] = None,
    as_json: JsonOption = False,
) -> None:
    """Say how capture and fit would work on cards of 8, 12, 16 and 24 GB, from configs alone.

    Example: rpam plan --shape qwen2.5-7b --host 32GiB
    """
    from rpam_lite.pipeline.planning import plan_cards
    from rpam_lite.recipe import load_recipe, parse_size

    loaded = load_recipe(recipe) if recipe else None
    host_bytes = parse_size(host, "--host") if host else None
    device_bytes = parse_size(device_memory, "--device-memory") if device_memory else None
    plans = plan_cards(loaded, shape, questions, tokens, host_bytes, device_bytes)
    if as_json:
        print_json(plans.as_json())
        return
    console = Console(soft_wrap=True)
    console.print(plans.table())
    console.print(plans.in_full(), markup=False, highlight=False)


@app.command("check")
def check_command(
    recipe: RecipeArgument,
    runs: RunsOption = Path("runs"),
    as_json: JsonOption = False,
) -> None:
    """Say everything that is wrong with RECIPE and its pair, before any work.

    Exit code: 0 nothing worse than INFO, 3 a WARNING, 1 an ERROR.

    Example: rpam check recipes/tiny.yaml --json
    """
    from rpam_lite.pipeline.checking import check_alone
    from rpam_lite.recipe import load_recipe

    raise typer.Exit(check_alone(load_recipe(recipe), runs, as_json))


@app.command("verify")
def verify_command(recipe: RecipeArgument, runs: RunsOption = Path("runs")) -> None:
    """Read the merged checkpoint again and compare it with what it must be.

    Example: rpam verify recipes/tiny.yaml
    """
    from rpam_lite.pipeline.trip import verify_again

    with_run(recipe, runs, verify_again)


@app.command("fit")
def fit_command(
    recipe: RecipeArgument,
    runs: RunsOption = Path("runs"),
    price: Annotated[
        str | None, typer.Option(help="points of accuracy that 1000 tokens must be worth, as 0,50,200: a family")
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="shares of Long's mean tokens that an answer may have, as 0.8,0.5: a family")
    ] = None,
    points: Annotated[
        str | None, typer.Option(help="points of accuracy that may be lost to Long, as 1,2,5: a family")
    ] = None,
    max_tokens_share: Annotated[
        float | None, typer.Option(min=0, max=1, help="wish: the most accurate within this share of Long's tokens")
    ] = None,
    max_points_below_long: Annotated[
        float | None, typer.Option(min=0, help="wish: the cheapest that loses at most so many points to Long")
    ] = None,
    device_memory: DeviceMemoryOption = None,
) -> None:
    """Fit the merging coefficients; with a wish, or --budget, --points or --price, a family of which one is chosen.

    What is given here takes the place of the recipe's `dial`; write it there to go on with `rpam run`.

    Example: rpam fit recipes/tiny.yaml --max-points-below-long 5
    """
    from rpam_lite.pipeline.trip import fit_family

    members = {"--price": price, "--budget": budget, "--points": points}
    wish = {"max_tokens_share": max_tokens_share, "max_points_below_long": max_points_below_long}
    if all(given is None for given in (*members.values(), *wish.values())):
        run_stage("fit", recipe, runs, device_memory)
    else:
        with_run(recipe, runs, partial(fit_family, members=members, wish=wish), device_memory)


@app.command("capture")
def capture_command(
    recipe: RecipeArgument, runs: RunsOption = Path("runs"), device_memory: DeviceMemoryOption = None
) -> None:
    """Run both parents over the labelled questions, and keep what the fit reads.

    Example: rpam capture recipes/tiny.yaml --device-memory 6GiB
    """
    run_stage("capture", recipe, runs, device_memory)


@app.command("quantize")
def quantize_command(
    context_: typer.Context,
    recipe: RecipeArgument,
    runs: RunsOption = Path("runs"),
    fit: Annotated[str | None, typer.Option(help="memory that weights, cache and buffers must fit, as 4GiB")] = None,
    budget_kld: Annotated[float | None, typer.Option(min=0, help="largest KL divergence, in nats a token")] = None,
    context: Annotated[
        int | None, typer.Option(min=1, help="with --fit: tokens of the context; `ollama.num_ctx` without it")
    ] = None,
    cache_type: Annotated[str, typer.Option(help="with --fit: type of the cache, F16, Q8_0 or Q4_0")] = "F16",
) -> None:
    """Quantize the GGUF file to the recipe's types; or choose the type for a memory, or for a loss.

    Example: rpam quantize recipes/tiny.yaml --fit 4GiB --context 16384
    """
    from rpam_lite.pipeline.quantize_to import quantize_to

    if fit is not None and budget_kld is not None:
        raise RpamError("--fit and --budget-kld: give one of them.")
    if fit is None and budget_kld is None:
        refuse_others(context_, {"recipe", "runs"}, "the recipe's types; it needs --fit or --budget-kld")
        run_stage("quantize", recipe, runs)
    else:
        with_run(
            recipe,
            runs,
            partial(quantize_to, fit=fit, budget_kld=budget_kld, context=context, cache_type=cache_type),
        )


@app.command("methods")
def methods_command(as_json: JsonOption = False) -> None:
    """List the merge methods that a recipe can name, with what they need and their source.

    Example: rpam methods
    """
    from rpam_lite.pipeline.merging import methods_json, methods_table

    if as_json:
        print_json(methods_json())
    else:
        Console(soft_wrap=True).print(methods_table())


def _add_stage_command(name: str) -> None:
    def command(recipe: RecipeArgument, runs: RunsOption = Path("runs")) -> None:
        run_stage(name, recipe, runs)

    command.__doc__ = f"{STAGE_HELP[name]}\n\nExample: rpam {name} recipes/tiny.yaml"
    app.command(name)(command)


for _name in STAGE_HELP:
    if _name not in ("check", "capture", "fit", "export", "quantize", "eval", "report"):
        _add_stage_command(_name)
