"""A run whose stages are done, with small files in place of what they would compute."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from rpam_lite.checkpoint.files import RUN_LOG
from rpam_lite.pipeline.manifest import execute
from rpam_lite.pipeline.opening import keep_recipe
from rpam_lite.pipeline.stage import Run
from rpam_lite.pipeline.trip import STAGES

FILES = {
    "label": ("patterns.jsonl", "long-f16.gguf", "short-f16.gguf"),
    "capture": ("layer-000.safetensors", "layers.json"),
    "export": ("mine-f16.gguf",),
}


def standing_in(name: str) -> Callable[[Run], None]:
    """What a stage does here: it writes its files, the same every time."""

    def write(run: Run) -> None:
        for file in FILES.get(name, (f"{name}.json",)):
            (run.of(name) / file).write_text(f"{name} {file} of {run.recipe.name}", encoding="utf-8")

    return write


def do(name: str, run: Run) -> None:
    """One stage."""
    execute(replace(STAGES[name], action=standing_in(name), refuses=lambda run: None), STAGES, run)


def finish(run: Run, until: str = "report") -> None:
    """All stages up to one, and what the command line puts beside them."""
    for name, stage in STAGES.items():
        if stage.applies(run.recipe):
            do(name, run)
        if name == until:
            break
    keep_recipe(run.recipe, run.folder)
    (run.folder / RUN_LOG).write_text("begun\n", encoding="utf-8")
    samples = run.folder / "samples"
    samples.mkdir(exist_ok=True)
    (samples / "long-0.jsonl").write_text("{}\n", encoding="utf-8")


def folder_contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder but locks."""
    files = [f for f in folder.rglob("*") if f.is_file() and f.name != ".lock"]
    return {str(f.relative_to(folder)): f.read_bytes() for f in files}
