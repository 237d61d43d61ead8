"""Looking at runs: `status` and `compare`."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from rpam_lite.cli.common import JsonOption, RunArgument, RunsOption, app, print_json


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
