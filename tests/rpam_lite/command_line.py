"""The command line in this process, where torch and transformers, seconds of every command, are imported once."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from unittest import mock

from rpam_lite.cli import app
from rpam_lite.terminal import fail_in_one_sentence


def rpam_here(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """What `rpam` with these arguments prints, and its exit code."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        contextlib.chdir(cwd),
        mock.patch.dict(os.environ, {"COLUMNS": "200"}),
        mock.patch.object(sys, "argv", ["rpam", *arguments]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            fail_in_one_sentence(partial(app, list(arguments)))
        except SystemExit as ended:
            code = int(ended.code or 0)
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())
