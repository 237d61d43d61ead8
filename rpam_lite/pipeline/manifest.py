"""When a stage must run again, and running it.

`manifest.json`, written last into a stage's folder, says that the stage is done, with which fingerprint, on what
the stages before it had made, and what it made itself.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from rpam_lite import __version__
from rpam_lite.checkpoint.files import read_json, write_json
from rpam_lite.errors import RpamError, some
from rpam_lite.pipeline.stage import Run, Stage, content_hash, fingerprint, identity
from rpam_lite.recipe import Recipe
from rpam_lite.run_files import MANIFEST

STARTED = "started.json"
MANIFEST_VERSION = 1
_REPORTED_PACKAGES = ("torch", "transformers", "gguf", "llama-cpp-python", "math-verify", "numpy")


@dataclass(frozen=True)
class Reason:
    """Why a stage must run.

    Attributes:
        kind: It never was done; its recipe, inputs or version changed; a stage that it builds on must run; such a
            stage made other files; files of its own are damaged; or `rpam clean` removed files that are needed.
        text: The same in words, with names and values.
    """

    kind: Literal["never", "changed", "earlier", "rebuilt", "damaged", "removed"]
    text: str


def is_done(stage: Stage, stages: dict[str, Stage], run: Run) -> bool:
    """Whether the stage and all it builds on are done, with this recipe, and its files are whole.

    A stage is built on what the stages before it *made*: if one of them ran again and made the same
    bytes, this one is still done.
    """
    return why_not_done(stage, stages, run) is None


def why_not_done(stage: Stage, stages: dict[str, Stage], run: Run) -> Reason | None:
    """Why the stage must run, as `recipe changed: fit.steps 30 -> 3`; None if it is done.

    Files that were removed to save space count as whole, see `removed_files`.
    """
    manifest = read_manifest(stage.name, run)
    if manifest is None:
        return Reason("never", "not done yet")
    if manifest["fingerprint"] != fingerprint(stage, run.recipe):
        return Reason("changed", _what_changed(stage, run.recipe, manifest))
    needs = needed_by(stage, stages, run.recipe)
    if again := [name for name in needs if not is_done(stages[name], stages, run)]:
        return Reason("earlier", f"builds on {', '.join(again)}")
    made = _made_by(needs, run)
    if manifest["built_on"] != made:
        others = [name for name in needs if manifest["built_on"].get(name) != made[name]]
        return Reason("rebuilt", f"other files of {', '.join(others)}" if others else "needs fewer stages now")
    not_its_own = _completed_by_others(stage, stages, run)
    sizes = {run.of(stage.name) / name: size for name, size in manifest["files"].items()}
    sizes |= {run.folder / name: size for name, size in manifest.get("completed", {}).items()}
    lost = [
        file.relative_to(run.of(stage.name) if run.of(stage.name) in file.parents else run.folder).as_posix()
        for file, size in sizes.items()
        if file not in not_its_own and not (file.is_file() and file.stat().st_size == size)
    ]
    return Reason("damaged", f"files missing or damaged: {some(lost)}") if lost else None


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


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
