"""`clean`: what of a run folder may be deleted, and deleting it when told to."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from rpam_lite.checkpoint.files import locked, size_text
from rpam_lite.cli.common import RunArgument, RunsOption, app
from rpam_lite.cli.log import logged
from rpam_lite.errors import RpamError
from rpam_lite.run_files import LOCK

if TYPE_CHECKING:
    from rpam_lite.pipeline.cleaning import Removable


@app.command("clean")
def clean_command(
    run: RunArgument,
    runs: RunsOption = Path("runs"),
    captured: Annotated[bool, typer.Option("--captured", help="delete the captured activations")] = False,
    ggufs: Annotated[bool, typer.Option("--ggufs", help="delete the unquantized GGUF files")] = False,
    everything: Annotated[bool, typer.Option("--everything", help="delete the whole run")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="don't ask")] = False,
) -> None:
    """Say what of a run may be deleted, with sizes; delete what is chosen, after asking.

    What is built on deleted files stays done; a run makes them again only for a stage that must run.

    Example: rpam clean recipes/tiny.yaml --captured --yes
    """
    from rpam_lite.pipeline.cleaning import removable, remove, remove_empty
    from rpam_lite.pipeline.opening import opened

    wanted = [name for name, on in (("captured", captured), ("ggufs", ggufs), ("everything", everything)) if on]
    if yes and not wanted:
        raise RpamError("--yes: choose what to delete with --captured, --ggufs or --everything.")
    if everything and len(wanted) > 1:
        raise RpamError(f"--everything: holds --{wanted[0]} already; give one of them.")
    there, console = opened(run, runs), Console(soft_wrap=True)
    if not there.folder.is_dir():
        raise RpamError(f"{there.folder}: no such run folder; there is nothing to delete.")
    if not wanted:
        console.print(_table(removable(there)))
        console.print("nothing deleted; choose with --captured, --ggufs or --everything.", highlight=False)
        return
    with locked(there.folder / LOCK, str(there.folder)):
        chosen = [part for part in removable(there) if part.name in wanted]
        console.print(_table(chosen))
        if not yes and not _agreed(there.folder):
            raise RpamError(f"{there.folder}: nothing was deleted; answer y, or give --yes.")
        with nullcontext(lambda line: None) if everything else logged(there.folder) as log:
            freed = f"{size_text(remove(there, chosen))} freed in {there.folder}: {', '.join(wanted)}"
            log(freed)
    console.print(freed, markup=False, highlight=False)
    if everything and (left := remove_empty(there.folder)):
        console.print(f"{there.folder}: stays, it holds {', '.join(left)}", markup=False, highlight=False)


def _agreed(folder: Path) -> bool:
    try:
        return typer.confirm(f"Delete them from {folder}?")
    except typer.Abort:
        return False


def _table(parts: Sequence["Removable"]) -> Table:
    table = Table(show_edge=False)
    for column in ("option", "what", "files", "size"):
        table.add_column(column, justify="right" if column in ("files", "size") else "left", overflow="fold")
    for part in parts:
        table.add_row(f"--{part.name}", part.what, str(len(part.files)), size_text(part.bytes))
    return table
