"""Before a run: `init`, and `recipes ls | show | cp`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from rpam_lite.cli.common import JsonOption, RecipeArgument, app, print_json
from rpam_lite.errors import RpamError


@app.command("init")
def init_command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="the recipe to write")] = Path("mine.yaml"),
    long: Annotated[str | None, typer.Option(help="the Long-CoT model: a folder, or an id on the hub")] = None,
    short: Annotated[str | None, typer.Option(help="the Short-CoT model")] = None,
    base: Annotated[str, typer.Option(help="what both were tuned from, if it is at hand")] = "",
    questions: Annotated[str | None, typer.Option(help="to calibrate on: a file, or a data set as gsm8k:train")] = None,
    held_out: Annotated[str | None, typer.Option(help="other questions, to measure on")] = None,
) -> None:
    """Write a first recipe for two models; what no option gives is asked for.

    Example: rpam init mine.yaml --long models/long --short models/short --questions train.jsonl --held-out test.jsonl
    """
    from rpam_lite.pipeline.init import Wishes, write_first_recipe

    if file.exists():
        raise RpamError(f"{file}: is there already; choose another name, or delete it first.")
    wishes = Wishes(
        long or _asked("Long-CoT model (folder, or org/name on the hub)", "--long"),
        short or _asked("Short-CoT model", "--short"),
        questions or _asked("Calibration questions (a file or a data set)", "--questions", "gsm8k:train"),
        held_out or _asked("Questions to measure on (a file or a data set)", "--held-out", "gsm8k"),
        base,
    )
    console = Console(soft_wrap=True, highlight=False)
    for sentence in write_first_recipe(file, wishes):
        console.print(f"note: {sentence}", markup=False)
    console.print(f"written: {file}", markup=False)
    for command, what in (
        ("check", "everything that is wrong with it, before any work"),
        ("plan", "which card or memory it needs"),
        ("run", "the whole trip; with --dry-run what that would do"),
    ):
        console.print(f"next: rpam {command} {file}  # {what}", markup=False)


def _asked(what: str, option: str, default: str | None = None) -> str:
    try:
        return str(typer.prompt(what, default=default))
    except typer.Abort:
        raise RpamError(f"{option} is missing; give it, or answer the question on a terminal.") from None


recipes_app = typer.Typer(help="The recipes that ship with rpam_lite: list, show, copy.", no_args_is_help=True)
app.add_typer(recipes_app, name="recipes")


@recipes_app.command("ls")
def ls_command(as_json: JsonOption = False) -> None:
    """List them, with their two models.

    Example: rpam recipes ls
    """
    from rpam_lite.pipeline.recipes import shipped

    found = shipped()
    if as_json:
        print_json({"version": 1, "recipes": [vars(recipe) for recipe in found]})
        return
    table = Table(show_edge=False)
    table.add_column("name", no_wrap=True)
    table.add_column("about")  # names both parents; their ids, which 80 columns would break, are in --json and `show`
    for recipe in found:
        table.add_row(recipe.name, recipe.about)
    Console(soft_wrap=True).print(table)


@recipes_app.command("show")
def show_command(name: RecipeArgument) -> None:
    """Print one, with its comments.

    Example: rpam recipes show tiny
    """
    from rpam_lite.pipeline.recipes import recipe_text

    print(recipe_text(name), end="")


@recipes_app.command("cp")
def cp_command(
    name: RecipeArgument,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="the copy; its stem becomes the recipe's name")],
) -> None:
    """Copy one to edit; its questions and models are found from there too.

    Example: rpam recipes cp tiny mine.yaml
    """
    from rpam_lite.pipeline.recipes import copy_recipe

    copy_recipe(name, file)
    print(f"written: {file}; edit it, then: rpam check {file}")
