"""What a stage is, and when it must run again.

Every stage owns one folder of the run. Its fingerprint is a hash of its part of the recipe and of the
files that it reads from outside. `manifest.json`, written last, says that the stage is done, with
which fingerprint, on what the stages before it had made, and what it made itself.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import RenderableType

from rpam_lite import __version__
from rpam_lite.checkpoint.files import adapter_base, read_json, write_json
from rpam_lite.checkpoint.hub import readable_name
from rpam_lite.errors import RpamError
from rpam_lite.recipe import Recipe

if TYPE_CHECKING:
    from rpam_lite.checkpoint.pair import Pair

MANIFEST, STARTED = "manifest.json", "started.json"
DONOR = "donor"  # copies of a donor with another template, beside the stages
MANIFEST_VERSION = 1
# What a checkpoint folder is read for.
_READ_SUFFIXES = (".safetensors", ".json", ".jinja", ".txt")
# Files up to this size are hashed whole; of larger ones size and modification time are taken.
_HASHED_SIZE = 64 << 20
_REPORTED_PACKAGES = ("torch", "transformers", "gguf", "llama-cpp-python", "math-verify", "numpy")


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


def is_done(stage: Stage, stages: dict[str, Stage], run: Run) -> bool:
    """Whether the stage and all it builds on are done, with this recipe, and its files are whole.

    A stage is built on what the stages before it *made*: if one of them ran again and made the same
    bytes, this one is still done.
    """
    return why_not_done(stage, stages, run) is None


def why_not_done(stage: Stage, stages: dict[str, Stage], run: Run) -> str | None:
    """Why the stage must run, as `recipe changed: fit.steps 30 -> 3`; None if it is done.

    Files that were removed to save space count as whole, see `removed_files`.
    """
    manifest = read_manifest(stage.name, run)
    if manifest is None:
        return "not done yet"
    if manifest["fingerprint"] != fingerprint(stage, run.recipe):
        return _what_changed(stage, run.recipe, manifest)
    needs = needed_by(stage, stages, run.recipe)
    if again := [name for name in needs if not is_done(stages[name], stages, run)]:
        return f"builds on {', '.join(again)}"
    made = _made_by(needs, run)
    if manifest["built_on"] != made:
        others = [name for name in needs if manifest["built_on"].get(name) != made[name]]
        return f"other files of {', '.join(others)}" if others else "needs fewer stages now"
    not_its_own = _completed_by_others(stage, stages, run)
    sizes = {run.of(stage.name) / name: size for name, size in manifest["files"].items()}
    sizes |= {run.folder / name: size for name, size in manifest.get("completed", {}).items()}
    lost = [
        file.relative_to(run.of(stage.name) if run.of(stage.name) in file.parents else run.folder).as_posix()
        for file, size in sizes.items()
        if file not in not_its_own and not (file.is_file() and file.stat().st_size == size)
    ]
    return f"files missing or damaged: {some(lost)}" if lost else None


def _what_changed(stage: Stage, recipe: Recipe, manifest: dict[str, Any]) -> str:
    """Which settings and inputs differ from those in the manifest."""
    before, now = manifest["settings"], _as_json(stage.settings(recipe))
    found = [f"recipe changed: {some(lines)}"] if (lines := list(differences(before, now))) else []
    inputs = [[str(path), identity(path)] for path in stage.inputs(recipe)]
    told = manifest.get("inputs", inputs)
    if [seen for _, seen in told] != [seen for _, seen in inputs]:
        known = {seen for _, seen in told}
        other = [path for path, seen in inputs if seen not in known]
        found.append(f"inputs changed: {some(other) or 'their order'}")
    return "; ".join(found) or "made by another version of rpam_lite"


def differences(before: Any, now: Any, key: str = "") -> Iterator[str]:
    """Lines such as `fit.steps 30 -> 3` of two settings as JSON holds them."""
    if isinstance(before, dict) and isinstance(now, dict):
        for name in [*before, *(name for name in now if name not in before)]:
            yield from differences(before.get(name), now.get(name), f"{key}.{name}" if key else name)
    elif before != now:
        yield f"{key} {json.dumps(before)} -> {json.dumps(now)}" if key else "its settings"


def removed_files(stage: str, run: Run) -> dict[str, int]:
    """Files of a finished stage that `rpam clean` removed, with their sizes; no file stands for them."""
    manifest = read_manifest(stage, run)
    return dict(manifest.get("removed", {})) if manifest else {}


def needed_by(stage: Stage, stages: dict[str, Stage], recipe: Recipe) -> tuple[str, ...]:
    """The stages whose files it reads, of those that this recipe needs."""
    return tuple(name for name in stage.needs if stages[name].applies(recipe))


def read_manifest(stage: str, run: Run) -> dict[str, Any] | None:
    """The manifest of a finished stage; None without one, or with one of another form."""
    file = run.of(stage) / MANIFEST
    if not file.exists():
        return None
    manifest = read_json(file, "the stage's manifest")
    return manifest if manifest.get("version") == MANIFEST_VERSION else None


def execute(stage: Stage, stages: dict[str, Stage], run: Run) -> float:
    """Run a stage from its beginning, or from where an interrupted run of the same stage stopped.

    Returns:
        Seconds it took.
    """
    folder = run.of(stage.name)
    built_on = _made_by(needed_by(stage, stages, run.recipe), run)
    current = {"fingerprint": fingerprint(stage, run.recipe), "built_on": built_on}
    started = folder / STARTED
    ours = [mark for mark in (MANIFEST, STARTED) if next(run.folder.glob(f"*/{mark}"), None)]
    if folder.exists() and not ours:
        raise RpamError(f"{folder}: is there, in a folder that no run of ours made; choose another with --runs.")
    stage.refuses(run)
    (folder / MANIFEST).unlink(missing_ok=True)
    interrupted = started.exists() and read_json(started, "the stage's start mark") == current
    if not interrupted and not stage.keeps_files:
        shutil.rmtree(folder, ignore_errors=True)
    write_json(started, current)
    begin = time.monotonic()
    stage.action(run)
    seconds = time.monotonic() - begin
    not_ours = {started, *_completed_by_others(stage, stages, run)}
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p not in not_ours)
    made = hashlib.sha256()
    for file in files:
        made.update(file.relative_to(folder).as_posix().encode() + b"\0")
        made.update(content_hash(file))
    manifest = {
        "version": MANIFEST_VERSION,
        "stage": stage.name,
        **current,
        "made": made.hexdigest(),
        "seconds": round(seconds, 1),
        "rpam_lite": __version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "packages": {name: _version(name) for name in _REPORTED_PACKAGES},
        "seed": run.recipe.seed,
        "settings": _as_json(stage.settings(run.recipe)),
        "inputs": [[str(path), identity(path)] for path in stage.inputs(run.recipe)],
        "files": {p.relative_to(folder).as_posix(): p.stat().st_size for p in files},
        "completed": {
            name: (run.folder / name).stat().st_size
            for name in stage.completes(run.recipe)
            if (run.folder / name).is_file()
        },
    }
    write_json(folder / MANIFEST, manifest)
    started.unlink()
    return seconds


def _completed_by_others(stage: Stage, stages: dict[str, Stage], run: Run) -> set[Path]:
    """Files that other stages write anew: they don't count as this one's."""
    return {run.folder / name for s in stages.values() if s is not stage for name in s.completes(run.recipe)}


def _made_by(names: tuple[str, ...], run: Run) -> dict[str, str | None]:
    """What each of these stages has made, as its manifest says."""
    manifests = {name: read_manifest(name, run) for name in names}
    return {name: manifest["made"] if manifest else None for name, manifest in manifests.items()}


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


def some(names: Sequence[str]) -> str:
    """The first three, and how many more."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
