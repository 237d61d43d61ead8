"""What the commands share at the terminal: progress bars, Ctrl-C, and one sentence for every error."""

from __future__ import annotations

import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from rpam_lite.errors import RpamError, missing_package


class Interrupted(Exception):  # noqa: N818 - not an error
    """Ctrl-C during a run."""


@contextmanager
def interrupts_kept() -> Iterator[Callable[[], None]]:
    """Gives a function that raises an interrupt again if it was lost.

    Python drops an exception that is raised in a callback from C, in a finalizer or in some imports.
    """
    came: list[int] = []

    def interrupt(number: int, frame: object) -> None:
        came.append(number)
        raise KeyboardInterrupt

    def again() -> None:
        if came:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield again
    finally:
        signal.signal(signal.SIGINT, before)


class Bars:
    """Progress bars on a terminal, a plain line a task elsewhere."""

    def __init__(self, progress: Progress, check: Callable[[], None]) -> None:
        self.progress, self.check = progress, check

    def start(self, what: str, total: int) -> Callable[[str], None]:
        """Begin a bar of `total` steps; call the result after each step."""
        if not self.progress.console.is_terminal:
            print(f"  {what} ({total} steps)", flush=True)
            return lambda note: self.check()
        task = self.progress.add_task(what, total=total)

        def step(note: str) -> None:
            self.check()
            self.progress.update(task, advance=1, description=f"{what} {escape(note)}" if note else what)

        return step


@contextmanager
def progress_bars() -> Iterator[Bars]:
    """Bars, and Ctrl-C as `Interrupted`."""
    columns = (TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns, console=Console(soft_wrap=True)) as progress, interrupts_kept() as check:
            yield Bars(progress, check)
    except KeyboardInterrupt:
        # Further out it would end without a word.
        raise Interrupted from None


def fail_in_one_sentence(command: Callable[[], object]) -> None:
    """Run a command; every error is one sentence on stderr and an exit code."""
    try:
        command()
    except (Interrupted, KeyboardInterrupt):
        _fail("interrupted; run the same command again to go on.", 130)
    except RpamError as error:
        _fail(str(error), 1)
    except ModuleNotFoundError as error:
        named = missing_package(error)
        _fail(str(named) if named else _unexpected(error), 1)
    except OSError as error:
        _fail(
            f"{error.filename or 'the system'}: {error.strerror or error}. Check path, permissions and free space, "
            "or choose another folder with --runs (--records of `rpam eval`); then run the same command again, "
            "nothing finished is lost.",
            1,
        )
    except Exception as error:
        _fail(_unexpected(error), 1)


def _unexpected(error: Exception) -> str:
    """Keep the traceback in a file and say where."""
    log = Path("rpam-error.log").resolve()
    try:
        log.write_text(traceback.format_exc(), encoding="utf-8")
        kept = f"the traceback is in {log}; please report it"
    except OSError:
        kept = "its traceback could not be written here"
    return f"unexpected {type(error).__name__}: {' '.join(str(error).split())[:300]} ({kept})."


def _fail(message: str, code: int) -> None:
    print(f"rpam: {message}", file=sys.stderr)
    sys.exit(code)
