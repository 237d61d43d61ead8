"""`rpam quantize --fit` and `--budget-kld`: the file for a memory, or for a loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from rich.table import Table

from rpam_lite.checkpoint.files import write_text
from rpam_lite.pipeline.artefacts import exported_gguf
from rpam_lite.pipeline.ollama import modelfile_of, usable_context
from rpam_lite.pipeline.ollama import settings as ollama_settings
from rpam_lite.pipeline.quantizing import settings
from rpam_lite.pipeline.stage import Run
from rpam_lite.pipeline.traces import calibration_traces
from rpam_lite.pipeline.trip import require_files
from rpam_lite.recipe import parse_size

if TYPE_CHECKING:
    from quant.gguf import Size

FOLDER = "fitted"
# Calibration traces that candidates are compared on.
_TRACES = 24


def quantize_to(run: Run, fit: str | None, budget_kld: float | None, context: int | None, cache_type: str) -> None:
    """Choose a type, write the file with its Modelfile, and print the table of all types.

    Args:
        run: The run.
        fit: Memory that weights, cache and compute buffer must fit, as "4GiB"; or None.
        budget_kld: Without `fit`: the largest KL divergence to the unquantized file, nats a token.
        context: Tokens of the context; None: what Ollama is told, at most the model's own.
        cache_type: Type of the cache's keys and values.

    Raises:
        RpamError: The stages before are not done, or nothing fits.
    """
    from export.ollama import modelfile
    from quant.choose import best_that_fits, general_types, largest_that_fit, smallest_within
    from quant.divergence import divergence
    from quant.gguf import sizes
    from quant.memory import context_memory

    _require_stages(run)
    context = context or usable_context(run)
    limit = None if fit is None else parse_size(fit, "--fit") / 2**20
    source, chosen = exported_gguf(run), settings(run)
    told = sizes(source, general_types(chosen.imatrix is not None), chosen)
    beside = context_memory(source, context, cache_type)
    questions = calibration_traces(run).questions
    ids, starts = [t.tolist() for t in questions.token_ids][:_TRACES], questions.prompt_lengths[:_TRACES]

    def loss(file: Path) -> float:
        run.say(f"measuring {file.stem}")
        return divergence(source, [file], ids, starts, run.recipe.engine_threads)[0].mean

    with TemporaryDirectory(dir=run.folder) as scratch:
        if limit is not None:
            fitting = largest_that_fit(told, beside, limit)
            name, measured = best_that_fits(source, Path(scratch), fitting, chosen, loss)
        else:
            name, measured = smallest_within(source, Path(scratch), told, chosen, loss, budget_kld or 0.0)
        file = run.of(FOLDER) / f"{run.recipe.name}-{name.lower()}.gguf"
        file.parent.mkdir(exist_ok=True)
        (Path(scratch) / f"{name}.gguf").replace(file)
    ours = ollama_settings(run)
    ours = dataclasses.replace(ours, parameters={**ours.parameters, "num_ctx": context})
    write_text(modelfile_of(file), modelfile(file.name, ours))
    title = f"context {context}, {cache_type} cache: {beside.total:.0f} MiB beside the weights"
    run.say(_table(title, told, beside.total, limit, measured, name))
    run.say(f"{name}: {told[name].mib + beside.total:.1f} MiB in all, KL divergence {measured[name]:.3g} nats")
    run.say(f"for llama.cpp: {file}")


def _require_stages(run: Run) -> None:
    for needed in ("export", *(["imatrix"] if run.recipe.quantize.imatrix else [])):
        require_files(needed, "quantize", run)


def _table(
    title: str,
    told: Mapping[str, Size],
    beside: float,
    limit: float | None,
    measured: Mapping[str, float],
    chosen: str,
) -> Table:
    """All types by size; memory in MiB, divergence in nats where it was measured."""
    table = Table(title=title, show_edge=False)
    for column in ("type", "bits", "weights", "in all", "fits", "KL divergence"):
        table.add_column(column, justify="left" if column == "type" else "right")
    for name in sorted(told, key=lambda n: -told[n].mib):
        size, total = told[name], told[name].mib + beside
        fits = "" if limit is None else "yes" if total <= limit else "no"
        kld = f"{measured[name]:.3g}" if name in measured else ""
        marked = f"{name} <" if name == chosen else name
        table.add_row(marked, f"{size.bits:.2f}", f"{size.mib:.1f} MiB", f"{total:.1f} MiB", fits, kld)
    return table
