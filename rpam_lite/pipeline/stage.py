"""What a run and a stage are.

Every stage owns one folder of the run. Its fingerprint is a hash of its part of the recipe and of the
files that it reads from outside; when it must run again says manifest.py.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import RenderableType

from rpam_lite.checkpoint.files import adapter_base
from rpam_lite.checkpoint.hub import readable_name
from rpam_lite.recipe import Recipe

if TYPE_CHECKING:
    from rpam_lite.checkpoint.pair import Pair

DONOR = "donor"  # copies of a donor with another template, beside the stages
# What a checkpoint folder is read for.
_READ_SUFFIXES = (".safetensors", ".json", ".jinja", ".txt")
# Files up to this size are hashed whole; of larger ones size and modification time are taken.
_HASHED_SIZE = 64 << 20


def parent_folders(recipe: Recipe) -> list[Path]:
    """Every folder that the two parents are read from: their own, and the base of an adapter."""
    parents = recipe.parents
    bases = [adapter_base(path, parents.base) for path in (parents.long, parents.short)]
    return list(dict.fromkeys([parents.long, parents.short, *(b for b in bases if b is not None)]))


def parent_names(recipe: Recipe) -> list[str]:
    """Names of both parents, Long first: those of the hub, or of their folders."""
    return [readable_name(recipe.parents.long), readable_name(recipe.parents.short)]


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
    say: Callable[[RenderableType], None]

    def of(self, stage: str) -> Path:
        """The folder of a stage."""
        return self.folder / stage

    def pair(self) -> Pair:
        """Both parents in the vocabulary that the merge keeps."""
        from rpam_lite.checkpoint.pair import open_pair
        from rpam_lite.checkpoint.prefill import with_neutral_template

        parents, merge = self.recipe.parents, self.recipe.merge
        pair = open_pair(parents.long, parents.short, parents.base, merge.donor)
        if merge.think_prefill == "keep":
            return pair
        copies = self.folder / f"{DONOR}-{identity(pair.donor.folder)[:12]}"
        return pair._replace(donor=with_neutral_template(pair.donor, copies))


@dataclass(frozen=True)
class Stage:
    """One step of the trip.

    Attributes:
        name: Its command and its folder.
        needs: Stages whose files it reads.
        settings: The part of the recipe that its result depends on, by key; and what else does, by its name.
        inputs: Files and folders outside the run folder that it reads.
        action: Does the work, writing into `run.of(name)`.
        keeps_files: Whether its folder outlives a change of fingerprint; its files then carry keys
            of their own.
        version: Raised when the form or the meaning of its files changes.
        applies: Whether a recipe needs it at all.
        completes: Files in other stages' folders that it writes anew, relative to the run folder.
        refuses: Raises what must stop it before anything of an earlier run is removed.
    """

    name: str
    needs: tuple[str, ...]
    settings: Callable[[Recipe], dict[str, Any]]
    inputs: Callable[[Recipe], list[Path]]
    action: Callable[[Run], None]
    keeps_files: bool = False
    version: int = 1
    applies: Callable[[Recipe], bool] = lambda recipe: True
    completes: Callable[[Recipe], list[str]] = lambda recipe: []
    refuses: Callable[[Run], None] = lambda run: None


def fingerprint(stage: Stage, recipe: Recipe) -> str:
    """Hash of the stage's version, its part of the recipe and the files that it reads from outside."""
    settings = list(stage.settings(recipe).values())
    parts = [stage.name, stage.version, settings, [identity(path) for path in stage.inputs(recipe)]]
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()


def identity(path: Path) -> str:
    """What tells one version of a file or of a checkpoint folder from another.

    Of a folder the weights, configs and tokenizer files count. Up to 64 MiB a file's content counts,
    so that a copy elsewhere is the same; of a larger one size and modification time.
    """
    digest = hashlib.sha256()
    files = sorted(p for p in path.iterdir() if p.suffix in _READ_SUFFIXES) if path.is_dir() else [path]
    for file in files:
        if file.is_file():
            stat = file.stat()
            digest.update(file.name.encode() + b"\0" if path.is_dir() else b"")
            large = stat.st_size > _HASHED_SIZE
            digest.update(f"{stat.st_size} {stat.st_mtime_ns}".encode() if large else content_hash(file))
    return digest.hexdigest()


def content_hash(file: Path) -> bytes:
    """SHA-256 of a whole file, however large: what is made again with the same bytes is the same."""
    stat = file.stat()
    return _content(file, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=1024)
def _content(file: Path, size: int, modified: int) -> bytes:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").digest()
