"""The `rpam` command: arguments in, printing out, no logic.

Exit codes: 0 done; 1 something to mend, named in one sentence; 2 wrong usage; 3 `check` found a WARNING;
130 interrupted.
"""

from __future__ import annotations

from typing import Annotated

import typer

from rpam_lite import __version__
from rpam_lite.cli import (  # noqa: F401 - each adds its commands
    chat,
    clean,
    evaluate,
    files,
    look,
    recipes,
    schema,
    stages,
)
from rpam_lite.cli.common import app
from rpam_lite.terminal import fail_in_one_sentence


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
