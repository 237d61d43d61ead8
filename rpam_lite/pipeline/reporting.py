"""The report stage: everything of the run gathered once; page, Markdown and model cards written from it."""

from __future__ import annotations

import hashlib
import webbrowser
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rpam_lite.checkpoint.files import write_text
from rpam_lite.pipeline.artefacts import exported_gguf, gguf_stage, imatrix_file, merged_folder, quantized_gguf
from rpam_lite.pipeline.stage import Run
from rpam_lite.pipeline.using import use_of, write_use
from rpam_lite.recipe import OURS, Recipe
from rpam_lite.run_files import COEFFICIENTS, COEFFICIENTS_PLOT

if TYPE_CHECKING:
    from rpam_lite.report.commands import Use
    from rpam_lite.report.data import Digest, Report

CARD = "README.md"


def completed_files(recipe: Recipe) -> list[str]:
    """The model cards, which lie in folders of other stages; relative to the run folder."""
    return [f"merge/{recipe.name}/{CARD}", f"{gguf_stage(recipe)}/{CARD}"]


def merge_card_file(run: Run) -> Path:
    """The model card of the merged checkpoint; before the report stage, without figures."""
    return merged_folder(run) / CARD


def gguf_card_file(run: Run) -> Path:
    """The model card beside the GGUF files."""
    return run.of(gguf_stage(run.recipe)) / CARD


def page_of(run: Run) -> Path:
    """The report page."""
    return run.of("report") / "report.html"


def run_report(run: Run) -> None:
    """Write report.html, report.md with its pictures, use.md, and the model cards."""
    from rpam_lite.report.card import card, gguf_card
    from rpam_lite.report.markdown import markdown
    from rpam_lite.report.page import page
    from rpam_lite.report.plots import plot_frontier

    folder, report = run.of("report"), gathered(run, digests(run))
    plot_frontier(report.rows, folder / "frontier.png")
    if report.lambdas is not None:
        (folder / "coefficients.png").write_bytes((run.folder / COEFFICIENTS_PLOT).read_bytes())
    write_text(folder / "report.md", markdown(report))
    write_text(page_of(run), page(report))
    write_use(run)
    write_text(merge_card_file(run), card(report.origin, report))
    write_text(gguf_card_file(run), gguf_card(report))


def gathered(run: Run, hashed: list[Digest] | None = None) -> Report:
    """Everything of a finished run."""
    from quant.tasks.questions import read_task_file
    from rpam_lite.preflight.questions import task_file
    from rpam_lite.report.gather import gather

    questions = {q.key: q for q in read_task_file(task_file(run.recipe.eval))}
    return gather(run.recipe, run.folder, merged_folder(run), questions, hashed or [], _use(run))


def _use(run: Run) -> Use:
    """How other programs run the merge, each file by the name that whoever gets it will see."""
    use = use_of(run)
    return replace(use, checkpoint=run.recipe.name, gguf=use.gguf_name, modelfile=Path(use.modelfile).name)


def digests(run: Run) -> list[Digest]:
    """SHA-256 of every file that can be passed on."""
    from rpam_lite.report.data import Digest

    files = [file for file in _passed_on(run) if file.is_file()]  # `rpam clean` may have removed some
    step = run.progress.start("hashing", len(files))
    found = []
    for file in files:
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        found.append(Digest(file.relative_to(run.folder).as_posix(), file.stat().st_size, digest))
        step(file.name)
    return found


def open_page(run: Run) -> None:
    """Show the page in the user's browser."""
    if not webbrowser.open(page_of(run).resolve().as_uri()):
        run.say(f"no browser could be started here; open {page_of(run)} yourself")


def _passed_on(run: Run) -> Iterator[Path]:
    yield from sorted(merged_folder(run).glob("*.safetensors"))
    yield exported_gguf(run)
    yield from (quantized_gguf(run, name) for name in run.recipe.quantize.types)
    if run.recipe.quantize.imatrix:
        yield imatrix_file(run)
    if run.recipe.merge.method == OURS:
        yield run.folder / COEFFICIENTS
