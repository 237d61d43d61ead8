"""`report`: what happened in a run, to look at."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rpam_lite.cli.common import RecipeArgument, RunsOption, app, with_run

if TYPE_CHECKING:
    from rpam_lite.pipeline.stage import Run


@app.command("report")
def report_command(
    recipe: RecipeArgument,
    runs: RunsOption = Path("runs"),
    opens: Annotated[bool, typer.Option("--open", help="show the page in the browser")] = False,
) -> None:
    """Write the report page and the model cards from the files of a run, and print the closing table.

    Example: rpam report recipes/tiny.yaml --open
    """
    from rpam_lite.pipeline.reporting import open_page
    from rpam_lite.pipeline.trip import run_one

    def action(run: "Run") -> None:
        run_one("report", run)
        if opens:
            open_page(run)

    with_run(recipe, runs, action)
