"""`publish`: a finished run to the hub."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from rpam_lite.cli.common import RunArgument, RunsOption, app


@app.command("publish")
def publish_command(
    run: RunArgument,
    to: Annotated[str, typer.Option(metavar="USER/NAME", help="repository of the checkpoint on the hub")],
    runs: RunsOption = Path("runs"),
    private: Annotated[bool, typer.Option("--private", help="only the owner sees it")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="list the files with their sizes; nobody is asked")
    ] = False,
    license_id: Annotated[
        str, typer.Option("--license", help="for the cards, as apache-2.0; the parents' where they name the same")
    ] = "",
    include: Annotated[str, typer.Option(help="what to publish")] = "merged,gguf,report",
) -> None:
    """Upload a finished run to the Hugging Face hub: USER/NAME, and USER/NAME-GGUF for the GGUF files.

    An interrupted upload goes on with the same command.

    Example: rpam publish recipes/tiny.yaml --to ada/tiny-adaptive --dry-run
    """
    from rpam_lite.pipeline.opening import opened
    from rpam_lite.pipeline.publishing import parts_of, publish

    say = partial(print, flush=True)
    publish(opened(run, runs), to, parts_of(include), private, dry_run, say, license_id)
