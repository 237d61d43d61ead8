"""Where the stages leave what later stages read."""

from __future__ import annotations

from pathlib import Path

from rpam_lite.pipeline.stage import Run
from rpam_lite.recipe import Recipe
from rpam_lite.run_files import exported_name, quantized_name

SCRATCH = "scratch"  # encoded layers and states of an unfinished stage


def parent_gguf(run: Run, parent: str) -> Path:
    """The parent as GGUF, made by the label stage."""
    return run.of("label") / f"{parent}-{run.recipe.export.type.lower()}.gguf"


def merged_folder(run: Run) -> Path:
    """The merged checkpoint."""
    return run.of("merge") / run.recipe.name


def exported_gguf(run: Run) -> Path:
    """The merge as an unquantized GGUF file."""
    return run.folder / exported_name(run.recipe)


def quantized_gguf(run: Run, type_name: str) -> Path:
    """The merge, quantized."""
    return run.folder / quantized_name(run.recipe, type_name)


def gguf_stage(recipe: Recipe) -> str:
    """The stage that makes the GGUF files to pass on: `export` where the recipe quantizes nothing."""
    return "quantize" if recipe.quantize.types else "export"


def gguf_files(run: Run) -> list[Path]:
    """The GGUF files to pass on, all in one folder: the quantized ones, or the unquantized one."""
    return [quantized_gguf(run, name) for name in run.recipe.quantize.types] or [exported_gguf(run)]


def imatrix_file(run: Run) -> Path:
    """The importance matrix of the merge."""
    return run.of("imatrix") / f"{run.recipe.name}.imatrix.gguf"
