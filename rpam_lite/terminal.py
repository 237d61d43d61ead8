"""What the commands share at the terminal: progress, Ctrl-C, and one sentence for every error."""

from __future__ import annotations

import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from rpam_lite.error_codes import UNEXPECTED, code_of
from rpam_lite.errors import RpamError, missing_package, one_line


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


@contextmanager
def interrupts_told() -> Iterator[Callable[[], bool]]:
    """Gives a function that says whether Ctrl-C came, for work that stops by itself at its next step."""
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    try:
        yield lambda: bool(came)
    finally:
        signal.signal(signal.SIGINT, before)


class Unexpected(Exception):  # noqa: N818 - stands for any error that nobody foresaw
    """An error that nobody foresaw, whose traceback is in a log file already."""

    def __init__(self, log: Path) -> None:
        self.log = log


def rate_text(steps: float, seconds: float) -> str:
    """Steps a second; seconds a step where they are slower than that."""
    rate = steps / max(seconds, 1e-9)
    return f"{rate:.1f}/s" if rate >= 1 else f"{1 / rate:.1f} s each" if rate > 0 else ""


def duration_text(seconds: float) -> str:
    """As `42 s`, `3 min 20 s` or `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


class Lines:
    """A task in plain lines: one at every tenth of it and every 30 s, but none within two seconds of another."""

    NOT_WITHIN, AT_LEAST_EVERY = 2.0, 30.0

    def __init__(self, what: str, total: int, tell: Callable[[str], None]) -> None:
        self.what, self.total, self.tell = what, total, tell
        self.done = self.tenths = 0
        self.begun = self.told = time.monotonic()
        tell(f"  {what} ({total} steps)")

    def step(self, note: str) -> None:
        """Count one step, and tell of it if it is time."""
        self.done += 1
        now, tenths = time.monotonic(), 10 * self.done // max(1, self.total)
        if now - self.told < (self.NOT_WITHIN if tenths > self.tenths else self.AT_LEAST_EVERY):
            return
        spent = now - self.begun
        if self.done < self.total:
            how = f"{rate_text(self.done, spent)}, {duration_text(spent / self.done * (self.total - self.done))} left"
        else:
            how = f"in {duration_text(spent)}"
        self.tell(f"  {self.what}: {self.done} of {self.total}{f', {note}' if note else ''}, {how}")
        self.told, self.tenths = now, tenths


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        spent = task.finished_time if task.finished else task.elapsed
        return Text(rate_text(task.completed, spent) if task.completed and spent else "")


class _Count(MofNCompleteColumn):
    def render(self, task: Task) -> Text:
        return Text("") if task.total is None else super().render(task)


class Bars:
    """Progress bars on a terminal, plain lines elsewhere; whatever is said is logged too."""

    def __init__(self, progress: Progress, check: Callable[[], None], log: Callable[[str], None]) -> None:
        self.progress, self.check, self.log = progress, check, log

    def say(self, text: RenderableType) -> None:
        """Print a line or a table, above the bars."""
        self.check()
        self.progress.console.print(text, markup=False, highlight=False)
        self.log(text if isinstance(text, str) else _plain(text))

    def start(self, what: str, total: int) -> Callable[[str], None]:
        """Begin a bar of `total` steps; call the result after each step."""
        if not self.progress.console.is_terminal:
            lines = Lines(what, total, self._tell)

            def step(note: str) -> None:
                self.check()
                lines.step(note)

            return step
        lines = Lines(what, total, self.log)
        task = self.progress.add_task(f"  {escape(what)}", total=total)

        def step_bar(note: str) -> None:
            self.check()
            lines.step(note)
            self.progress.update(task, advance=1, description=f"  {escape(f'{what} {note}'.rstrip())}")

        return step_bar

    def _tell(self, line: str) -> None:
        print(line, flush=True)
        self.log(line)


@contextmanager
def progress_bars(log: Callable[[str], None] = lambda line: None) -> Iterator[Bars]:
    """Bars, and Ctrl-C as `Interrupted`."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        _Count(),
        _Rate(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(soft_wrap=True)
    try:
        with (
            Progress(*columns, console=console, disable=not console.is_terminal) as progress,
            interrupts_kept() as check,
        ):
            # What counts no steps, as loading a model, shows that it goes on.
            working = progress.add_task("working", total=None)
            yield Bars(progress, check, log)
            progress.remove_task(working)
    except KeyboardInterrupt:
        # Further out it would end without a word.
        raise Interrupted from None


def _plain(text: RenderableType) -> str:
    """What a log file can hold of a table."""
    out = StringIO()
    Console(file=out, width=132).print(text)
    return out.getvalue().rstrip()


def fail_in_one_sentence(command: Callable[[], object]) -> None:
    """Run a command; every error is its code and one sentence on stderr, and an exit code."""
    try:
        command()
    except (Interrupted, KeyboardInterrupt):
        # Caught within `exec` (as dataclasses use it when a module is imported), an interrupt would make Python end
        # by SIGINT in spite of the exit code, until another `exec` has ended well.
        exec("")
        _fail("interrupted; run the same command again to go on.", 130)
    except RpamError as error:
        _fail(f"[{code_of(error)}] {error}", 1)
    except ModuleNotFoundError as error:
        named = missing_package(error)
        _fail(f"[{code_of(named)}] {named}" if named else _unexpected(error), 1)
    except OSError as error:
        _fail(
            f"[E08] {error.filename or 'the system'}: {error.strerror or error}. Check path, permissions and free "
            "space, or choose another folder with --runs (--records of `rpam eval`); then run the same command again, "
            "nothing finished is lost.",
            1,
        )
    except Unexpected as error:
        cause = error.__cause__ or error
        _fail(_reported(cause, f"the traceback is in {error.log}; please report it"), 1)
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
    return _reported(error, kept)


def _reported(error: BaseException, kept: str) -> str:
    return f"[{UNEXPECTED}] unexpected {type(error).__name__}: {one_line(error, 300)} ({kept})."


def _fail(message: str, code: int) -> None:
    print(f"rpam: {message}", file=sys.stderr)
    sys.exit(code)
