"""What differs between Linux, macOS and Windows, as far as another system can be acted here."""

from __future__ import annotations

import ast
import errno
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

import rpam_lite
from rpam_lite import platform
from rpam_lite.checkpoint.files import append_rows, whole_file, write_text

ROOT = Path(rpam_lite.__file__).parents[1]
MODULES = [file for room in ("rpam_lite", "quant", "export", "bench") for file in sorted((ROOT / room).rglob("*.py"))]
SYSTEMS = ["linux", "darwin", "win32"]


@pytest.fixture(params=SYSTEMS)
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """As if this were another system."""
    monkeypatch.setattr(sys, "platform", request.param)
    if request.param == "win32":
        monkeypatch.setattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0, raising=False)
    if request.param != "linux":
        monkeypatch.delattr(os, "posix_fallocate")
    return str(request.param)


def test_memory_is_read(system: str) -> None:
    resident = platform.resident_memory()
    assert 10 << 20 < resident < psutil.virtual_memory().total
    assert 0 < platform.free_memory() < psutil.virtual_memory().total
    platform.reset_peak()
    assert platform.peak_memory() > 0
    assert platform.peak_memory(os.getpid()) >= resident // 2
    assert platform.boot_id() == platform.boot_id() != ""


def test_a_process_that_is_gone_holds_nothing(system: str) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert platform.peak_memory(child.pid) == 0


def test_a_file_gets_its_size_and_keeps_what_it_holds(system: str, tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"head")
    for size in (1000, 1000):
        with file.open("r+b") as stream:
            platform.allocate(stream, size)
        assert file.stat().st_size == size
    assert file.read_bytes() == b"head" + bytes(996)


@pytest.mark.parametrize("system", ["darwin", "win32"], indirect=True)
def test_a_disk_without_room_is_said_before_anything_is_written(
    system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=999))
    with (tmp_path / "weights").open("wb") as stream, pytest.raises(OSError, match="No space") as caught:
        platform.allocate(stream, 1000)
    assert caught.value.errno == errno.ENOSPC
    assert (tmp_path / "weights").stat().st_size == 0


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EINVAL])
def test_a_file_system_that_keeps_no_room_still_gives_the_size(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(descriptor: int, offset: int, size: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "posix_fallocate", refuses)
    with (tmp_path / "weights").open("wb") as stream:
        platform.allocate(stream, 1000)
    assert (tmp_path / "weights").stat().st_size == 1000


@pytest.mark.parametrize("system", ["win32"], indirect=True)
def test_a_name_that_a_scanner_holds_is_taken_when_it_lets_go(
    system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "report.md").write_text("old", encoding="utf-8")
    tries: list[Path] = []
    real = Path.replace

    def held(part: Path, path: Path) -> Path:
        tries.append(part)
        if len(tries) < 3:
            raise PermissionError(13, "The process cannot access the file")
        return real(part, path)

    monkeypatch.setattr(Path, "replace", held)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    write_text(tmp_path / "report.md", "new")
    assert (len(tries), (tmp_path / "report.md").read_text(encoding="utf-8")) == (3, "new")
    monkeypatch.setattr(Path, "replace", lambda part, path: (_ for _ in ()).throw(PermissionError(13, "held")))
    with pytest.raises(PermissionError):
        write_text(tmp_path / "report.md", "newer")
    assert [p.name for p in tmp_path.iterdir()] == ["report.md"]


@pytest.mark.parametrize("system", ["win32"], indirect=True)
def test_bytes_are_flushed_through_a_file_open_for_writing(
    system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows refuses to flush any other."""
    import fcntl

    def commit(descriptor: int) -> None:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr(os, "fsync", commit)
    with whole_file(tmp_path / "weights") as part:
        part.write_bytes(b"1")
    assert (tmp_path / "weights").read_bytes() == b"1"


def test_a_process_ends_with_what_it_started(system: str) -> None:
    code = "import subprocess, sys; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True); p.wait(); input()"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, **platform.in_own_group()
    )
    assert process.stdout is not None
    grandchild = psutil.Process(int(process.stdout.readline()))
    platform.end_group(process)
    assert process.returncode not in (None, 0)
    _, alive = psutil.wait_procs([grandchild], timeout=10)
    assert all(p.status() == psutil.STATUS_ZOMBIE for p in alive)
    platform.end_group(process)  # once more does no harm


def test_files_have_the_same_bytes_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows would write two bytes at the end of a line: hashes and sizes of a run would differ."""
    monkeypatch.setattr(os, "linesep", "\r\n")
    write_text(tmp_path / "one", "a\nä\n")
    append_rows(tmp_path / "two", [{"key": 1}])
    assert (tmp_path / "one").read_bytes() == "a\nä\n".encode()
    assert (tmp_path / "two").read_bytes() == b'{"key": 1}\n'


# Calls and modules that one of the three systems lacks, wherever they are reached from.
LACKING = {
    "os": {
        *("chmod", "chown", "fork", "forkpty", "getgid", "getloadavg", "getpgid", "getuid", "geteuid", "kill"),
        *("killpg", "lockf", "mkfifo", "nice", "openpty", "posix_fadvise", "posix_fallocate", "posix_spawn", "pread"),
        *("preadv", "pwrite", "pwritev", "sched_getaffinity", "sched_setaffinity", "sendfile", "setpgid", "setsid"),
        *("statvfs", "symlink", "sync", "sysconf", "uname", "wait", "wait4", "waitpid", "O_DIRECT", "memfd_create"),
    },
    "signal": {"SIGKILL", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGCHLD", "SIGALRM", "alarm", "setitimer", "pause"},
}
POSIX_MODULES = {"fcntl", "grp", "posix", "pwd", "resource", "termios", "tty", "syslog", "readline"}
LINUX_PLACES = ("/proc/", "/sys/", "/dev/", "/tmp/")
# It mounts a small disk to fill it, and says so where it can't.
LEFT_TO_LINUX = {("bench/kill.py", "symlink_to")}


def lacking(file: Path) -> list[str]:
    """Every use in a module of what one system lacks."""
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Attribute):
            owner = node.value.id if isinstance(node.value, ast.Name) else ""
            if node.attr in LACKING.get(owner, ()) or node.attr in ("symlink_to", "hardlink_to", "preexec_fn"):
                names.append(node.attr)
        elif isinstance(node, ast.Import):
            names += [a.name for a in node.names if a.name in POSIX_MODULES]
        elif isinstance(node, ast.ImportFrom):
            names += [node.module] if node.module in POSIX_MODULES else []
            names += [a.name for a in node.names if a.name in LACKING.get(node.module or "", ())]
        elif isinstance(node, ast.keyword) and node.arg in ("start_new_session", "preexec_fn", "pass_fds"):
            names.append(node.arg)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith(LINUX_PLACES):
            names.append(node.value)
        found += [name for name in names if (file.relative_to(ROOT).as_posix(), name) not in LEFT_TO_LINUX]
    return found


def test_no_module_but_one_calls_what_a_system_lacks() -> None:
    here = {file.relative_to(ROOT).as_posix(): names for file in MODULES if (names := lacking(file))}
    assert set(here.pop("rpam_lite/platform.py")) >= {"resource", "killpg", "posix_fallocate", "/proc/self/clear_refs"}
    assert here == {}


def is_text(call: ast.Call) -> bool:
    """Whether a call reads or writes text: of a path, of a file by its mode, or of a process."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else ""
    if name == "open":  # with anything but a mode as its argument it opens something else than a path
        modes = [a.value if isinstance(a, ast.Constant) else "?" for a in call.args]
        return len(modes) <= 1 and all(str(mode).strip("rwax+t") == "" for mode in modes)
    return name in ("read_text", "write_text") or any(
        k.arg == "text" and isinstance(k.value, ast.Constant) and k.value.value is True for k in call.keywords
    )


def test_no_text_is_read_or_written_in_the_systems_own_encoding() -> None:
    """Windows' own is not UTF-8."""
    found = [
        f"{file.relative_to(ROOT).as_posix()}:{node.lineno}"
        for file in MODULES
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and is_text(node) and not any(k.arg == "encoding" for k in node.keywords)
    ]
    assert found == []


def test_the_device_is_asked_for_in_one_place() -> None:
    asks = ("cuda.is_available", "cuda.device_count", "backends.mps", "torch.mps", "accelerator.current_accelerator")
    found = {
        file.relative_to(ROOT).as_posix()
        for file in MODULES
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and any(ask in ast.unparse(node) for ask in asks)
    }
    assert found == {"rpam_lite/device.py"}
