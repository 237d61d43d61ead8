"""Looking at runs: `status` and `compare`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from rpam_lite.cli.common import JsonOption, RunArgument, RunsOption, app, print_json
from rpam_lite.cli.complete import run_folders


@app.command("status")
def status_command(run: RunArgument, runs: RunsOption = Path("runs"), as_json: JsonOption = False) -> None:
    """Say which stages are done, what they cost, and what is next.

    Example: rpam status recipes/tiny.yaml
    """
    from rpam_lite.pipeline.opening import again, opened
    from rpam_lite.pipeline.status import status_of, status_table

    status = status_of(opened(run, runs))
    command = again("run", run, runs) if status.next_stage else None
    if as_json:
        print_json(status.as_json(command))
        return
    console = Console(soft_wrap=True)
    console.print(status_table(status))
    if status.at_work:
        console.print(f"{status.folder}: another process works there now.", markup=False, highlight=False)
    following = f"next: {status.next_stage}; {command}" if command else f"all done: {status.folder / 'report'}"
    console.print(following, markup=False, highlight=False)


@app.command("compare")
def compare_command(
    measured: Annotated[
        list[Path],
        typer.Argument(
            metavar="A B...", help="run folders, or what `rpam eval --save` wrote", autocompletion=run_folders
        ),
    ],
    model: Annotated[list[str] | None, typer.Option(help="only models of this name; repeatable")] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare what was measured on the same questions: accuracy, tokens, paired differences with 95 % intervals.

    Of a run folder its merges are taken, unless --model names others; all are compared with those of the first.

    Example: rpam compare runs/tiny runs/mine --model "Merge Q4_K_M"
    """
    from rpam_lite.pipeline.comparing import compare_measured, comparison_json, points_table

    found = compare_measured(measured, model or [])
    if as_json:
        print_json(comparison_json(found))
        return
    from quant.tables import console

    console().print(points_table(found))
    found.table()
