"""What a stage is, and when it must run again.

Every stage owns one folder of the run. Its fingerprint is a hash of all its result depends on: its
part of the recipe, the files it reads from outside, and the fingerprints of the stages it builds
on. `manifest.json`, written last, says that the stage is done and with which fingerprint.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

from rpam_lite import __version__
from rpam_lite.checkpoint.files import read_json, write_json
from rpam_lite.recipe import Recipe

MANIFEST, STARTED = "manifest.json", "started.json"
# Files up to this size are hashed whole; of larger ones size and modification time are taken.
_HASHED_SIZE = 64 << 20
_REPORTED_PACKAGES = ("torch", "transformers", "gguf", "llama-cpp-python", "math-verify", "numpy")


class Progress(Protocol):
    """Shows how far a long task is."""

    def start(self, what: str, total: int) -> Callable[[str], None]:
        """Begin a task; the result is called after each of `total` steps, with a short note."""
        ...


@dataclass(frozen=True)
class Run:
    """One recipe, its run folder, and where progress goes."""

    recipe: Recipe
    folder: Path
    progress: Progress
    say: Callable[[str], None]

    def of(self, stage: str) -> Path:
        """The folder of a stage."""
        return self.folder / stage


@dataclass(frozen=True)
class Stage:
    """One step of the trip.

    Attributes:
        name: Its command and its folder.
        help: One line for the command line.
        needs: Stages whose files it reads.
        settings: The part of the recipe that its result depends on.
        inputs: Files and folders outside the run folder that it reads.
        action: Does the work, writing into `run.of(name)`.
        keeps_files: Whether its folder outlives a change of fingerprint; its files then carry keys
            of their own.
        version: Raised when the form or the meaning of its files changes.
    """

    name: str
    help: str
    needs: tuple[str, ...]
    settings: Callable[[Recipe], Any]
    inputs: Callable[[Recipe], list[Path]]
    action: Callable[[Run], None]
    keeps_files: bool = False
    version: int = 1


def fingerprint(stage: Stage, stages: dict[str, Stage], recipe: Recipe) -> str:
    """Hash of everything that the stage's result depends on."""
    parts = [
        stage.name,
        stage.version,
        stage.settings(recipe),
        [identity(path) for path in stage.inputs(recipe)],
        [fingerprint(stages[name], stages, recipe) for name in stage.needs],
    ]
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()


def identity(path: Path) -> str:
    """What tells one version of a file or folder from another; the same for a copy elsewhere."""
    digest = hashlib.sha256()
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    for file in files:
        if file.exists():
            stat = file.stat()
            digest.update(file.relative_to(path).as_posix().encode() + b"\0")
            digest.update(_content(file, stat.st_size, stat.st_mtime_ns))
    return digest.hexdigest()


@lru_cache(maxsize=1024)
def _content(file: Path, size: int, modified: int) -> bytes:
    if size > _HASHED_SIZE:
        return f"{size} {modified}".encode()
    return hashlib.sha256(file.read_bytes()).digest()


def is_done(stage: Stage, stages: dict[str, Stage], run: Run) -> bool:
    """Whether the stage's files are there, whole, and made from the same things."""
    manifest = run.of(stage.name) / MANIFEST
    if not manifest.exists():
        return False
    written = read_json(manifest, "the stage's manifest")
    if written["fingerprint"] != fingerprint(stage, stages, run.recipe):
        return False
    sizes = written["files"].items()
    return all((f := run.of(stage.name) / name).is_file() and f.stat().st_size == size for name, size in sizes)


def execute(stage: Stage, stages: dict[str, Stage], run: Run) -> float:
    """Run a stage, going on where an interrupted run with the same fingerprint stopped.

    Returns:
        Seconds it took.
    """
    folder, current = run.of(stage.name), fingerprint(stage, stages, run.recipe)
    started = folder / STARTED
    (folder / MANIFEST).unlink(missing_ok=True)
    resumable = started.exists() and read_json(started, "the stage's start mark")["fingerprint"] == current
    if not resumable and not stage.keeps_files:
        shutil.rmtree(folder, ignore_errors=True)
    write_json(started, {"fingerprint": current})
    begin = time.monotonic()
    stage.action(run)
    seconds = time.monotonic() - begin
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p != started)
    manifest = {
        "version": 1,
        "stage": stage.name,
        "fingerprint": current,
        "seconds": round(seconds, 1),
        "rpam_lite": __version__,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _REPORTED_PACKAGES},
        "seed": run.recipe.seed,
        "settings": json.loads(json.dumps(stage.settings(run.recipe), default=str)),
        "files": {p.relative_to(folder).as_posix(): p.stat().st_size for p in files},
    }
    write_json(folder / MANIFEST, manifest)
    return seconds


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
