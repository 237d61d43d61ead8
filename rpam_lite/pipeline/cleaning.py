"""`rpam clean`: what of a run folder may be deleted, and deleting it.

A finished stage keeps its manifest, in which the files that went are listed: what was built on them is still
done, and a run makes them again only if a stage that must run reads them.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rpam_lite.checkpoint.files import RUN_LOG, RUN_RECIPE, write_json
from rpam_lite.pipeline import kept_fit, questions
from rpam_lite.pipeline.artefacts import exported_gguf, parent_gguf
from rpam_lite.pipeline.manifest import read_manifest
from rpam_lite.pipeline.quantize_to import FOLDER
from rpam_lite.pipeline.stage import DONOR, Run
from rpam_lite.pipeline.trip import STAGES
from rpam_lite.run_files import LOCK, MANIFEST

# Beside the stages' own folders: questions drawn, answers sampled for labels, kept fits, and files of `quantize --fit`.
_BESIDE = (questions.FOLDER, "samples", kept_fit.FOLDER, FOLDER)


@dataclass(frozen=True)
class Removable:
    """Files that can be deleted together: their option, what they are, and where they lie with their sizes."""

    name: str
    what: str
    files: dict[Path, int]

    @property
    def bytes(self) -> int:
        """Of all of them."""
        return sum(self.files.values())


def removable(run: Run) -> tuple[Removable, ...]:
    """What may be deleted: `captured`, `ggufs`, or `everything`."""
    captured = _sized(file for file in _files(run.of("capture")) if file.name != MANIFEST)
    ggufs = [parent_gguf(run, "long"), parent_gguf(run, "short"), exported_gguf(run), *run.of("eval").glob("*.gguf")]
    ours = _folders(run)
    everything = [file for folder in ours for file in _files(folder)]
    everything += [run.folder / name for name in (RUN_RECIPE, RUN_LOG)]
    return (
        Removable("captured", "captured activations of both parents", captured),
        Removable("ggufs", "unquantized GGUF files: of the parents, and of the merge", _sized(ggufs)),
        Removable(
            "everything", "the whole run: merge, quantized files, answers and measurements too", _sized(everything)
        ),
    )


def remove(run: Run, chosen: Sequence[Removable]) -> int:
    """Delete them; the run folder must be locked.

    Returns:
        Bytes that were freed.
    """
    freed = 0
    for removed in chosen:
        if removed.name == "everything":
            freed += sum(_delete(file, size) for file, size in removed.files.items())
            for folder in _folders(run):
                shutil.rmtree(folder, ignore_errors=True)
            continue
        for stage in STAGES:
            _forget(stage, run, removed.files)
        freed += sum(_delete(file, size) for file, size in removed.files.items())
    return freed


def remove_empty(folder: Path) -> list[str]:
    """Delete what is left of a run folder after `everything`, its lock being free again.

    Returns:
        Names of what is not ours and stays, with the folder.
    """
    (folder / LOCK).unlink(missing_ok=True)
    left = sorted(file.name for file in folder.iterdir())
    if not left:
        folder.rmdir()
    return left


def _folders(run: Run) -> list[Path]:
    """All of a run folder that is ours."""
    return [*(run.of(name) for name in (*STAGES, *_BESIDE)), *run.folder.glob(f"{DONOR}-*")]


def _forget(stage: str, run: Run, files: dict[Path, int]) -> None:
    """Move files from what the stage has made to what was removed, before they go."""
    manifest = read_manifest(stage, run)
    if manifest is None:
        return
    gone = {name: size for name, size in manifest["files"].items() if run.of(stage) / name in files}
    if gone:
        kept = {name: size for name, size in manifest["files"].items() if name not in gone}
        told = {**manifest, "files": kept, "removed": {**manifest.get("removed", {}), **gone}}
        write_json(run.of(stage) / MANIFEST, told)


def _files(folder: Path) -> Iterator[Path]:
    return (file for file in folder.rglob("*") if file.is_file())


def _sized(files: Iterator[Path] | Sequence[Path]) -> dict[Path, int]:
    return {file: file.stat().st_size for file in files if file.is_file()}


def _delete(file: Path, size: int) -> int:
    file.unlink(missing_ok=True)
    return size
