"""What the commands share: the application, its usual arguments, and how a run folder is opened.

A command imports what it does inside itself, so that `rpam --help` answers at once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rpam_lite.checkpoint.files import locked
from rpam_lite.cli.complete import recipes_and_runs
from rpam_lite.cli.log import logged
from rpam_lite.cli.panels import Panels, epilog
from rpam_lite.errors import RpamError
from rpam_lite.run_files import LOCK
from rpam_lite.terminal import Interrupted, progress_bars

if TYPE_CHECKING:
    from rpam_lite.pipeline.stage import Run

app = typer.Typer(
    help="Merge a Long-CoT and a Short-CoT model into one adaptive reasoner, without training.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
    cls=Panels,
    epilog=epilog(),
)
RecipeArgument = Annotated[
    Path,
    typer.Argument(
        metavar="RECIPE", help="recipe file, the name of one (tiny), or a run folder", autocompletion=recipes_and_runs
    ),
]
RunArgument = Annotated[
    Path,
    typer.Argument(
        metavar="RECIPE | RUN_FOLDER", help="recipe, or the folder of a run", autocompletion=recipes_and_runs
    ),
]
RunsOption = Annotated[Path, typer.Option("--runs", help="folder that holds the run folders")]
DeviceMemoryOption = Annotated[
    str | None,
    typer.Option("--device-memory", help="of the GPU that capture and fit may use, as 6GiB; like `memory.device`"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="print one JSON document, and nothing else")]


def with_run(recipe_path: Path, runs: Path, action: Callable[[Run], None], device_memory: str | None = None) -> None:
    """Do something to the run of a recipe, whose folder is locked for so long; its log file keeps what is said."""
    from rpam_lite.pipeline.opening import folder_of, keep_recipe
    from rpam_lite.pipeline.parents import downloaded
    from rpam_lite.pipeline.stage import Run
    from rpam_lite.recipe import load_recipe, with_device_memory

    try:
        recipe = with_device_memory(load_recipe(recipe_path), device_memory)
        folder = folder_of(recipe_path, runs, recipe)
        with locked(folder / LOCK, str(folder)), logged(folder) as log, progress_bars(log) as bars:
            keep_recipe(recipe, folder)
            action(Run(downloaded(recipe, folder, bars.say), folder, bars, bars.say))
    except KeyboardInterrupt:
        raise Interrupted from None  # typer would call it aborted


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def run_stage(name: str, recipe_path: Path, runs: Path, device_memory: str | None = None) -> None:
    """Run one stage of a recipe anew."""
    from rpam_lite.pipeline.trip import run_one

    with_run(recipe_path, runs, partial(run_one, name), device_memory)


def refuse_others(context: typer.Context, read: Collection[str], what: str) -> None:
    """An option that would do nothing is refused."""
    for option in context.command.params:
        given = context.get_parameter_source(str(option.name))
        if option.name not in read and given is not None and given.name == "COMMANDLINE":
            raise RpamError(f"{option.opts[0]}: does nothing together with {what}; leave it out.")
