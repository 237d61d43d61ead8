"""What differs between Linux, macOS and Windows: the only module with calls that one of them lacks.

Memory of the machine and of a process; bytes that are on the disk; a file that takes another's name; a process
that is ended with all that it started. Type checking for all three (`make check`) keeps such calls out elsewhere.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, BinaryIO

# Seconds to wait before each further try: a virus scanner or an indexer lets go soon.
_WAITS = (0.05, 0.1, 0.2, 0.4, 0.8)


def free_memory() -> int:
    """Bytes that can be had without swapping, and not above this process's own limit."""
    import psutil

    free = int(psutil.virtual_memory().available)
    if sys.platform != "win32":
        import resource

        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit != resource.RLIM_INFINITY:
            free = min(free, limit)
    return free


def resident_memory() -> int:
    """Bytes of memory that this process holds."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def reset_peak() -> None:
    """Start the high-water mark of this process's memory anew; only Linux can."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_memory(process: int | None = None) -> int:
    """The most bytes that a process has held: since `reset_peak` on Linux, elsewhere since it began.

    Args:
        process: Its id; this one without it.

    Returns:
        Bytes; 0 if there is no such process (any more).
    """
    import psutil

    try:
        if sys.platform == "linux":
            status = Path(f"/proc/{process or 'self'}/status").read_text(encoding="ascii", errors="replace")
            return next((int(row.split()[1]) * 1024 for row in status.splitlines() if row.startswith("VmHWM:")), 0)
        if sys.platform == "darwin" and process is None:
            import resource

            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes there, not KiB
        memory = psutil.Process(process).memory_info()
        return int(getattr(memory, "peak_wset", memory.rss))
    except (OSError, psutil.Error):
        return 0


def boot_id() -> str:
    """Changes whenever the machine starts anew: what was not forced onto the disk before that may be lost."""
    file = Path("/proc/sys/kernel/random/boot_id")
    if sys.platform == "linux" and file.exists():
        return file.read_text(encoding="ascii").strip()
    import psutil

    return str(round(psutil.boot_time()))


def allocate(stream: BinaryIO, size: int) -> None:
    """Give an open file its size, and the room on the disk with it where the system can promise that.

    Raises:
        OSError: ENOSPC if the room is not there.
    """
    if sys.platform == "linux":
        try:
            os.posix_fallocate(stream.fileno(), 0, size)
            return
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # some file systems can't
                raise
    missing = size - os.fstat(stream.fileno()).st_size
    if missing > shutil.disk_usage(Path(stream.name).parent).free:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), stream.name)
    stream.truncate(size)


def flush(path: Path) -> None:
    """Have a file's bytes on the disk."""
    # Windows flushes only what is open for writing; elsewhere a file may be one that can't be written.
    with path.open("r+b" if sys.platform == "win32" else "rb") as stream:
        os.fsync(stream.fileno())


def replace(part: Path, path: Path) -> None:
    """Give the file or folder `part` the name `path`; a file that has it is gone then.

    Raises:
        OSError: It can't; on Windows not while another program has one of them open, which is waited for a moment.
    """
    for wait in _WAITS if sys.platform == "win32" else ():
        try:
            part.replace(path)
            return
        except PermissionError:
            time.sleep(wait)
    part.replace(path)


def sync_disks() -> None:
    """Have everything that any program wrote on the disk, so that a time includes it; Windows has no such call."""
    if sys.platform != "win32":
        os.sync()


def let_lines_be_edited() -> None:
    """Give `input` arrow keys and a history; a console of Windows has them of its own."""
    if sys.platform != "win32":
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401


def in_own_group() -> dict[str, Any]:
    """Arguments of Popen for a process that Ctrl-C does not reach and `end_group` ends with all that it started."""
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    return {"start_new_session": True}


def end_group(process: subprocess.Popen[str]) -> None:
    """End a process that was started `in_own_group`, with all that it started, and wait for it."""
    if process.poll() is None:
        if sys.platform == "win32":
            import psutil

            with contextlib.suppress(psutil.Error):
                for child in psutil.Process(process.pid).children(recursive=True):
                    with contextlib.suppress(psutil.Error):
                        child.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()
