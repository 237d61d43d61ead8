"""The log file of a run folder: every line said, warnings, and the traceback of an unexpected error."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

import typer

from rpam_lite import __version__
from rpam_lite.checkpoint.files import RUN_LOG
from rpam_lite.error_codes import code_of
from rpam_lite.errors import RpamError
from rpam_lite.terminal import Interrupted, Unexpected


class _Handler(logging.FileHandler):
    """Goes on without the log where it can't be written: a full disk is told by what failed on it."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        """Say nothing."""

    def close(self) -> None:
        """Close the file, whole or not."""
        with suppress(OSError):
            super().close()


@contextmanager
def logged(folder: Path) -> Iterator[Callable[[str], None]]:
    """Append to the folder's log file for as long as something is worked on.

    Gives the function that logs a line. Warnings of Python and of libraries' loggers are logged too, and so is
    what ends the block.

    Raises:
        Unexpected: In place of an error that nobody foresaw, which is logged with its traceback.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handler = _Handler(folder / RUN_LOG, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S%z"))
    ours, root, warn = logging.getLogger("rpam"), logging.getLogger(), warnings.showwarning
    level = ours.level
    ours.setLevel(logging.INFO)

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        ours.warning("%s:%d: %s: %s", filename, lineno, category.__name__, message)
        warn(message, category, filename, lineno, file, line)

    root.addHandler(handler)
    warnings.showwarning = show
    try:
        ours.info("rpam_lite %s: %s", __version__, " ".join(["rpam", *sys.argv[1:]]))
        yield ours.info
        ours.info("ended well")
    except typer.Exit:
        raise
    except (Interrupted, KeyboardInterrupt):
        ours.warning("interrupted")
        raise
    except RpamError as error:
        ours.error("[%s] %s", code_of(error), error)
        raise
    except (OSError, ModuleNotFoundError) as error:
        ours.exception("%s", error)
        raise
    except Exception as error:
        ours.exception("unexpected %s", type(error).__name__)
        raise Unexpected((folder / RUN_LOG).resolve()) from error
    finally:
        warnings.showwarning = warn
        ours.setLevel(level)
        root.removeHandler(handler)
        handler.close()
