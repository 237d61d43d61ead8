"""A finished run to publish: the embedded Long parent stands in for the merge, a few bytes for what else is made."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from rpam_lite.checkpoint.files import RUN_LOG
from rpam_lite.pipeline.artefacts import merged_folder
from rpam_lite.pipeline.manifest import execute
from rpam_lite.pipeline.opening import keep_recipe
from rpam_lite.pipeline.publishing import publish
from rpam_lite.pipeline.reporting import gguf_card_file, merge_card_file
from rpam_lite.pipeline.stage import Run
from rpam_lite.pipeline.trip import STAGES
from rpam_lite.recipe import load_recipe
from tests.conftest import ROOT

ALL = ("merged", "gguf", "report")
TYPES = ("Q8_0", "Q4_K_M")
# What the stages leave, as far as it is published, beside the merge and the cards.
MADE = {
    "fit/coefficients.json": b"{}",
    "imatrix/tiny.imatrix.gguf": b"matrix",
    "export/tiny-f16.gguf": b"GGUF" * 9,
    "quantize/tiny-q8_0.gguf": b"GGUF" * 5,
    "quantize/tiny-q4_k_m.gguf": b"GGUF" * 3,
    "quantize/Modelfile.tiny-q8_0": b"FROM ./tiny-q8_0.gguf\n",
    "quantize/Modelfile.tiny-q4_k_m": b"FROM ./tiny-q4_k_m.gguf\n",
    "divergence/divergence.json": b"{}",
    "eval/evaluation.json": b"{}",
    "report/report.md": b"# tiny\n",
    "report/use.md": b"rpam chat /home/ada/runs/tiny\n",
}
_CARD = """---
base_model:
- acme/long
base_model_relation: merge
library_name: {library}
tags:
- merge
---

# tiny

It kept 98 % on {library}.

## Use

rpam chat runs/tiny
"""


class Silent:
    """Shows no progress."""

    def start(self, what: str, total: int) -> Callable[[str], None]:
        """A task."""
        return lambda note: None


def run_to_publish(tmp_path: Path, types: tuple[str, ...] = TYPES) -> Run:
    """A finished run, its stages stamped as ever, the work left out.

    Args:
        tmp_path: Gets its folder and the parents: Long from the hub's cache, Short a folder.
        types: Of the quantized files.
    """
    recipe = load_recipe(Path("tiny"))
    no_card = shutil.ignore_patterns("README.md")
    long = shutil.copytree(
        ROOT / "recipes/tiny/long", tmp_path / "hub/models--acme--long/snapshots/0123", ignore=no_card
    )
    short = shutil.copytree(ROOT / "recipes/tiny/short", tmp_path / "short", ignore=no_card)
    parents = recipe.parents.model_copy(update={"long": long, "short": short})
    quantize = recipe.quantize.model_copy(update={"types": types})
    recipe = recipe.model_copy(update={"parents": parents, "quantize": quantize})
    run = Run(recipe, tmp_path / "runs/tiny", Silent(), lambda text: None)
    for name, stage in STAGES.items():
        if stage.applies(recipe):
            execute(replace(stage, action=lambda r, name=name: _leave(name, r), refuses=lambda r: None), STAGES, run)
    keep_recipe(recipe, run.folder)
    (run.folder / RUN_LOG).touch()
    return run


def do(
    run: Run,
    to: str = "ada/tiny",
    parts: tuple[str, ...] = ALL,
    private: bool = False,
    dry: bool = False,
    license_id: str = "",
) -> list[str]:
    """Publish it; what was said."""
    said: list[str] = []
    publish(run, to, parts, private, dry, said.append, license_id)
    return said


def _leave(stage: str, run: Run) -> None:
    """What a stage does here."""
    for place, content in MADE.items():
        if place.startswith(f"{stage}/") and (stage != "quantize" or run.recipe.quantize.types):
            (run.folder / place).parent.mkdir(parents=True, exist_ok=True)
            (run.folder / place).write_bytes(content)
    if stage == "merge":
        shutil.copytree(run.recipe.parents.long, merged_folder(run))
    if stage == "report":
        merge_card_file(run).write_text(_CARD.format(library="transformers"), encoding="utf-8")
        gguf_card_file(run).write_text(_CARD.format(library="gguf"), encoding="utf-8")
