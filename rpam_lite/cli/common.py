"""What the commands share: the application, its usual arguments, and how a run folder is opened.

A command imports what it does inside itself, so that `rpam --help` answers at once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import RenderableType

from rpam_lite.checkpoint.files import locked
from rpam_lite.errors import RpamError
from rpam_lite.terminal import progress_bars

if TYPE_CHECKING:
    from rpam_lite.pipeline.stage import Run

app = typer.Typer(
    help="Merge a Long-CoT and a Short-CoT model into one adaptive reasoner, without training.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
)
RecipeArgument = Annotated[Path, typer.Argument(metavar="RECIPE", help="recipe file, or the name of one: tiny")]
RunsOption = Annotated[Path, typer.Option("--runs", help="folder that holds the run folders")]


def with_run(recipe_path: Path, runs: Path, action: Callable[[Run], None]) -> None:
    """Do something to the run of a recipe, which is locked for so long."""
    from rpam_lite.pipeline.parents import downloaded
    from rpam_lite.pipeline.stage import Run
    from rpam_lite.recipe import load_recipe

    with progress_bars() as bars:

        def say(text: RenderableType) -> None:
            bars.check()
            bars.progress.console.print(text, markup=False, highlight=False)

        recipe = downloaded(load_recipe(recipe_path), runs, say)
        folder = runs / recipe.name
        with locked(folder / ".lock", str(folder)):
            action(Run(recipe, folder, bars, say))


def run_stage(name: str, recipe_path: Path, runs: Path) -> None:
    """Run one stage of a recipe anew."""
    from rpam_lite.pipeline.trip import run_one

    with_run(recipe_path, runs, partial(run_one, name))


def refuse_others(context: typer.Context, read: Collection[str], what: str) -> None:
    """An option that would do nothing is refused."""
    for name in context.params:
        given = context.get_parameter_source(name)
        if name not in read and given is not None and given.name == "COMMANDLINE":
            raise RpamError(f"--{name.replace('_', '-')}: does nothing together with {what}; leave it out.")
