"""The `rpam` command: arguments in, printing out, no logic.

Its exit codes and the order of its commands stand in panels.py. Modules of commands do without `from __future__ import
annotations`: typer would compile every option's type from text, a tenth of a second of every call.
"""

from __future__ import annotations

import os
import sys
from io import TextIOWrapper
from typing import Annotated

import typer

from rpam_lite import __version__
from rpam_lite.cli import (  # noqa: F401 - each adds its commands
    chat,
    clean,
    evaluate,
    files,
    look,
    publish,
    recipes,
    report,
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
    # What Apple's GPU can't do is done on the CPU then; torch reads it when it is loaded.
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a console of Windows may not have every character
    fail_in_one_sentence(app)
