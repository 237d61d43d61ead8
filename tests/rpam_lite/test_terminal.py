"""Progress in plain lines and bars, the log file of a run, and how unexpected errors end."""

from __future__ import annotations

import errno
import logging
import re
import subprocess
import sys
import warnings
from io import StringIO
from pathlib import Path

import pytest
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from rpam_lite import terminal
from rpam_lite.checkpoint.files import RUN_LOG, whole_file
from rpam_lite.cli.log import logged
from rpam_lite.errors import RpamError
from rpam_lite.terminal import Bars, Lines, Unexpected, duration_text, fail_in_one_sentence, progress_bars, rate_text


class Clock:
    """Seconds that a test sets."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(terminal, "time", clock)
    return clock


def steps(clock: Clock, total: int, seconds: float) -> list[str]:
    told: list[str] = []
    lines = Lines("measuring", total, told.append)
    for _ in range(total):
        clock.now += seconds
        lines.step("")
    return told


def test_plain_lines_come_at_tenths(clock: Clock) -> None:
    told = steps(clock, 400, 0.25)
    assert told[0] == "  measuring (400 steps)"
    assert told[1] == "  measuring: 40 of 400, 4.0/s, 1 min 30 s left"
    assert told[-1] == "  measuring: 400 of 400, in 1 min 40 s"
    assert len(told) == 11


def test_plain_lines_come_every_half_minute_where_tenths_are_slow(clock: Clock) -> None:
    told = steps(clock, 100, 10.0)
    assert told[1:3] == [
        "  measuring: 3 of 100, 10.0 s each, 16 min 10 s left",
        "  measuring: 6 of 100, 10.0 s each, 15 min 40 s left",
    ]


def test_a_quick_task_is_one_line(clock: Clock) -> None:
    assert steps(clock, 1000, 0.001) == ["  measuring (1000 steps)"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_rates() -> None:
    assert (rate_text(30, 10), rate_text(2, 10)) == ("3.0/s", "5.0 s each")


def test_on_a_terminal_bars_are_drawn_and_lines_are_logged(clock: Clock) -> None:
    out, told = StringIO(), list[str]()
    with Progress(console=Console(file=out, force_terminal=True), auto_refresh=False) as progress:
        bars = Bars(progress, lambda: None, told.append)
        step = bars.start("measuring [x]", 20)
        for _ in range(20):
            clock.now += 1
            step("now")
        table = Table("column")
        table.add_row("cell")
        bars.say(table)
        assert progress.tasks[0].completed == 20
    assert "cell" in out.getvalue()
    assert told[1].startswith("  measuring [x]: 2 of 20, now, 1.0/s")
    assert "column" in told[-1]
    assert "\x1b" not in told[-1]


def test_elsewhere_the_same_lines_are_said_and_logged(capsys: pytest.CaptureFixture[str], clock: Clock) -> None:
    told: list[str] = []
    with progress_bars(told.append) as bars:
        bars.say("begun")
        step = bars.start("measuring", 2)
        clock.now = 5
        step("")
        step("")
    assert (
        capsys.readouterr().out.splitlines()
        == told
        == [
            "begun",
            "  measuring (2 steps)",
            "  measuring: 1 of 2, 5.0 s each, 5 s left",
        ]
    )


def test_the_log_holds_lines_warnings_and_the_end(tmp_path: Path) -> None:
    handlers = list(logging.getLogger().handlers)
    for ending in ("first", "second"):
        with logged(tmp_path) as log, warnings.catch_warnings():
            log(ending)
            logging.getLogger("some.library").warning("look here")
    text = (tmp_path / RUN_LOG).read_text()
    assert [line.split(" ", 1)[1] for line in text.splitlines() if "rpam_lite" not in line] == [
        f"{level} {said}"
        for ending in ("first", "second")
        for level, said in (("INFO", ending), ("WARNING", "look here"), ("INFO", "ended well"))
    ]
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4} ", line) for line in text.splitlines())
    assert logging.getLogger().handlers == handlers


def test_python_warnings_are_logged_and_still_shown(tmp_path: Path) -> None:
    shown: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(warnings, "showwarning", lambda message, *rest: shown.append(str(message)))
        with logged(tmp_path):
            warnings.showwarning("soon gone", FutureWarning, "here.py", 7)
    assert shown == ["soon gone"]
    assert "WARNING here.py:7: FutureWarning: soon gone" in (tmp_path / RUN_LOG).read_text()


def test_an_unexpected_error_points_to_its_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        with logged(tmp_path):
            raise ZeroDivisionError("by nothing")

    with pytest.raises(SystemExit) as ended:
        fail_in_one_sentence(command)
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert said.startswith("rpam: [E20] unexpected ZeroDivisionError: by nothing (the traceback is in ")
    assert str(tmp_path / RUN_LOG) in said
    text = (tmp_path / RUN_LOG).read_text()
    assert "Traceback" in text
    assert 'raise ZeroDivisionError("by nothing")' in text


def test_an_error_of_the_user_is_logged_without_traceback(tmp_path: Path) -> None:
    with pytest.raises(RpamError), logged(tmp_path):
        raise RpamError("x: is wrong.")
    text = (tmp_path / RUN_LOG).read_text()
    assert "ERROR [E02] x: is wrong." in text
    assert "Traceback" not in text
    with pytest.raises(typer.Exit), logged(tmp_path):
        raise typer.Exit(3)
    with pytest.raises(Unexpected), logged(tmp_path):
        raise ValueError("y")


def test_an_interrupt_while_a_class_is_made_ends_with_130_too(tmp_path: Path) -> None:
    """Python would end by the signal: it remembers an interrupt that has left an `exec`."""
    (tmp_path / "interrupted.py").write_text(
        "from rpam_lite.terminal import fail_in_one_sentence\n"
        "def interrupt():\n"
        "    raise KeyboardInterrupt\n"
        "fail_in_one_sentence(lambda: exec('interrupt()', globals()))\n"
    )
    ended = subprocess.run([sys.executable, "-m", "interrupted"], cwd=tmp_path, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (130, "rpam: interrupted; run the same command again to go on.\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full device here")
def test_where_the_log_cannot_be_written_the_work_goes_on(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rpam.log").symlink_to("/dev/full")
    with logged(tmp_path) as log:
        log("a line")
    assert capfd.readouterr().err == ""


def test_a_write_that_fails_names_its_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left") as caught, whole_file(tmp_path / "big"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.filename == str(tmp_path / "big")
