"""Functions that may take for ever, run in processes that can be killed.

A process is started when all that exist are busy, up to WORKERS of them, and is killed when it takes
too long. `ask` may be called from several threads, which is how many answers are graded at once.
Run as a module, this file is such a process.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import LifoQueue
from typing import Any

from rpam_lite.platform import end_group, in_own_group

WORKERS = min(4, os.cpu_count() or 1)
# Importing is not grading: a user's grader may import a large library.
LOADING_SECONDS = 120.0


class NotLoadedError(Exception):
    """The function can't be imported, or is none."""


class _Worker:
    """One process, the functions it has imported, and a thread that waits for its answers."""

    def __init__(self) -> None:
        self.paths = _paths()
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "quant.tasks.workers"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            env=environment,
            **in_own_group(),
        )
        self.reader = ThreadPoolExecutor(1)
        self.loaded: set[str] = set()

    def call(self, function: str, arguments: list[Any] | None, seconds: float) -> Any:
        """Call a function with arguments; with None, only import it."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps([function, arguments]) + "\n")
            self.process.stdin.flush()
            line = self.reader.submit(self.process.stdout.readline).result(seconds)
            if not line:
                raise RuntimeError("its process ended")
        except BaseException:  # an interrupt too: a late answer would be taken for the next one
            self.stop()
            raise
        value, error = json.loads(line)
        if error is not None:
            raise RuntimeError(error)
        return value

    def stop(self) -> None:
        # With what a user's grader has started: it would keep the pipe open that the reader waits for.
        end_group(self.process)
        self.reader.shutdown()


def _paths() -> list[str]:
    """Where modules are found: a worker must find what this process finds, a user's own module included."""
    with contextlib.suppress(FileNotFoundError):  # the working folder may be deleted
        return [str(Path.cwd()), *sys.path]
    return sys.path.copy()


# The last one that was free is taken first, so that one caller at a time keeps to one process.
_free: LifoQueue[_Worker | None] = LifoQueue()
for _ in range(WORKERS):
    _free.put(None)


def ask(function: str, *arguments: Any, seconds: float) -> Any:
    """Call a function in a worker process; arguments and value are what JSON can hold.

    Args:
        function: As "package.module:function".
        arguments: Of the call.
        seconds: After these the process is killed; its start and its imports do not count.

    Raises:
        TimeoutError: It took too long.
        NotLoadedError: It can't be imported, or is no function.
        RuntimeError: It raised, or its process died; the message says what.
    """
    with _borrowed(function) as worker:
        return worker.call(function, list(arguments), seconds)


def load(function: str) -> None:
    """Import a function in a worker process.

    Raises:
        NotLoadedError: It can't be imported, or is no function.
    """
    with _borrowed(function):
        pass


@contextlib.contextmanager
def _borrowed(function: str) -> Iterator[_Worker]:
    """A worker that has imported the function, and that nobody else talks to."""
    worker = _free.get()
    try:
        if worker is not None and function not in worker.loaded and worker.paths != _paths():
            worker.stop()
            worker = None
        if worker is None or worker.process.poll() is not None:
            worker = _Worker()
        if function not in worker.loaded:
            try:
                worker.call(function, None, LOADING_SECONDS)
            except TimeoutError:
                raise NotLoadedError(f"importing it took longer than {LOADING_SECONDS:g} seconds") from None
            except RuntimeError as error:
                raise NotLoadedError(str(error)) from None
            worker.loaded.add(function)
        yield worker
    finally:
        _free.put(worker)


@atexit.register
def _stop_all() -> None:
    while not _free.empty():
        worker = _free.get()
        if worker is not None:
            worker.stop()


def _serve() -> None:
    logging.disable(logging.CRITICAL)
    # What a function prints would be taken for an answer.
    answers, sys.stdout = sys.stdout, sys.stderr
    functions: dict[str, Callable[..., Any]] = {}
    for line in sys.stdin:
        name, arguments = json.loads(line)
        value, error = None, None
        try:
            if name not in functions:
                module, _, attribute = name.partition(":")
                importlib.invalidate_caches()  # the module may be younger than this process
                functions[name] = getattr(importlib.import_module(module), attribute)
                if not callable(functions[name]):
                    raise TypeError(f"{attribute!r} is not a function")
            if arguments is not None:
                value = functions[name](*arguments)
            reply = json.dumps([value, None])
        except (Exception, SystemExit) as raised:
            error = f"{type(raised).__name__}: {raised}"
            reply = json.dumps([None, error])
        answers.write(reply + "\n")
        answers.flush()


if __name__ == "__main__":
    _serve()
