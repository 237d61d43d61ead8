"""Files and folders that are whole under their name or absent."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rpam_lite.errors import RpamError
from rpam_lite.platform import flush, replace

if TYPE_CHECKING:
    import torch

# A PEFT adapter's files, and what its tensors' names begin with.
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ADAPTER_PREFIX = "base_model.model."
# What every run folder holds beside its stages.
RUN_RECIPE, RUN_LOG = "recipe.yaml", "rpam.log"


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it takes the final name when the block ends well."""
    part = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    # A killed run's child may still write into an old one: a new file is another inode.
    part.unlink(missing_ok=True)
    try:
        yield part
        flush(part)
        replace(part, path)
    except OSError as error:
        if error.filename is None:  # what failed was a write
            error.filename = str(path)
        raise
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder beside `path`; it replaces `path` when the block ends well."""
    part = path.with_name(path.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        replace_folder(part, path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def replace_folder(part: Path, path: Path) -> None:
    """Give a finished folder its final name, its bytes being on the disk."""
    for file in part.rglob("*"):
        if file.is_file():
            flush(file)
    # A folder can't be replaced in one step: the old one goes first. Whoever reads it asks the
    # stage's manifest, which is removed before a stage runs.
    shutil.rmtree(path, ignore_errors=True)
    replace(part, path)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text so that `path` is whole or absent."""
    with whole_file(path) as part:
        part.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON so that `path` is whole or absent."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def is_run_folder(path: Path) -> bool:
    """Whether it is a folder that a run of ours made."""
    return (path / RUN_RECIPE).is_file() and (path / RUN_LOG).is_file()


def is_adapter(path: Path) -> bool:
    """Whether a folder holds a PEFT adapter rather than a whole checkpoint."""
    return (path / ADAPTER_CONFIG).exists()


def adapter_base(path: Path, base: Path | None) -> Path | None:
    """Folder of the checkpoint that a parent is an adapter over: `base`, or what it names; None of a whole one."""
    if not is_adapter(path):
        return None
    named = read_json(path / ADAPTER_CONFIG, "the adapter's config").get("base_model_name_or_path")
    return base or Path(str(named or "an unnamed model"))


def read_json(path: Path, what: str) -> dict[str, Any]:
    """Read a JSON object; `what` names the file's role in the error.

    Raises:
        RpamError: The file is missing, is not JSON, or is JSON but no object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RpamError(f"{path}: {what} is missing; check the path, or restore the file.") from None
    except (ValueError, RecursionError) as error:
        raise RpamError(f"{path}: {what} is not valid JSON ({error}); restore the file.") from None
    if not isinstance(value, dict):
        raise RpamError(f"{path}: {what} is a JSON {type(value).__name__}, not an object; restore the file.")
    return value


_UNITS = (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))


def size_text(size: int) -> str:
    """Bytes in the largest binary unit that leaves one figure before the point."""
    for unit, factor in _UNITS:
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} B"


def size_at_least(size: int) -> str:
    """Bytes as `size_text`, rounded up: a memory of what it says is enough."""
    for unit, factor in _UNITS:
        if size >= factor:
            return f"{-(-10 * size // factor) / 10:.1f} {unit}"
    return f"{size} B"


def whole_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Objects of a JSON-lines file; none if it is absent. Lines that an interrupt cut off are passed over."""
    yield from _objects(path.read_text(encoding="utf-8", errors="replace")) if path.exists() else ()


def _objects(text: str) -> Iterator[dict[str, Any]]:
    for line in text.split("\n"):  # texts in it may hold other line breaks
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict):
            yield row


def all_rows(path: Path, mend: str) -> list[dict[str, Any]]:
    """The same of a file that nothing may be missing of.

    Args:
        path: The file.
        mend: What to do where it is damaged.

    Raises:
        RpamError: A line of it is no JSON object, or it is not UTF-8 text.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RpamError(f"{path}: is not UTF-8 text (byte {error.start}); {mend}.") from None
    rows = list(_objects(text))
    if len(rows) < sum(bool(line.strip()) for line in text.split("\n")):
        raise RpamError(f"{path}: holds lines that are no JSON objects; {mend}.")
    return rows


def read_rows(path: Path) -> dict[str, dict[str, Any]]:
    """Whole rows by their `key`; of two with one key the later."""
    return {row["key"]: row for row in whole_rows(path) if "key" in row}


def save_state(value: Any, path: Path) -> None:
    """Write what `torch.load` reads, so that `path` is whole or absent.

    Raises:
        OSError: The disk does not take it.
    """
    import torch

    with whole_file(path) as part:
        try:
            torch.save(value, part)
        except RuntimeError as error:
            if "inline_container" not in str(error):
                raise
            # So torch's own writer tells of a disk that is full.
            raise OSError(errno.EIO, "it can't be written whole", str(path)) from None


def load_tensors(path: Path, mend: str) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file, on the CPU.

    Args:
        path: The file.
        mend: What to do where it can't be read.

    Raises:
        RpamError: It is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found: dict[str, torch.Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise RpamError(f"{path}: can't be read ({error}); {mend}.") from None
    return found


def _last_byte(path: Path) -> bytes:
    with path.open("rb") as stream:
        stream.seek(-1, os.SEEK_END)
        return stream.read(1)


def append_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Append rows to a JSON-lines file, each as soon as it comes; nothing that is there changes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cut_off = path.exists() and path.stat().st_size > 0 and _last_byte(path) != b"\n"
    with path.open("a", encoding="utf-8", newline="\n") as stream:
        if cut_off:
            stream.write("\n")
        for row in rows:
            stream.write(_line(row))
            stream.flush()


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold a lock file for as long as something is worked on.

    Args:
        path: The lock file; it stays.
        what: What is locked, for the error.

    Raises:
        RpamError: Another process holds it.
    """
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(path, timeout=0):
            yield
    except Timeout:
        raise RpamError(f"{what}: another run works there; wait until it has ended, or stop it.", code="E13") from None


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"
