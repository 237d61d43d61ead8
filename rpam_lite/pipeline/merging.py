"""The merge stage: write the merged checkpoint, then prove it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from rpam_lite import __version__
from rpam_lite.checkpoint.files import read_json, write_json
from rpam_lite.checkpoint.hub import readable_name
from rpam_lite.errors import RpamError
from rpam_lite.pipeline.artefacts import merged_folder
from rpam_lite.pipeline.stage import Run, identity, parent_folders
from rpam_lite.pipeline.statistics import FILE, is_measured, load_statistics
from rpam_lite.recipe import OURS
from rpam_lite.run_files import COEFFICIENTS, FINDINGS, VERIFIED

if TYPE_CHECKING:
    from rpam_lite.merge.apply import MergedSource, MethodSource
    from rpam_lite.merge.decision import DecidingSource


def run_merge(run: Run) -> None:
    """Write the merged checkpoint as an ordinary Hugging Face folder."""
    import torch

    from rpam_lite.checkpoint.write import write_checkpoint
    from rpam_lite.report.card import card
    from rpam_lite.report.gather import gather_origin

    recipe = run.recipe
    source, config, donor = merged_source(run)
    config["dtype" if "dtype" in config else "torch_dtype"] = recipe.merge.dtype
    origin = _made_from(run)
    write_checkpoint(
        source,
        config,
        donor,
        merged_folder(run),
        getattr(torch, recipe.merge.dtype),
        origin,
        recipe.merge.shard_size,
        card(gather_origin(recipe, origin, _findings(run))),
        partial(run.progress.start, "merging"),
    )
    verify_merge(run)


def verify_merge(run: Run) -> None:
    """Compare the merged checkpoint with what it must be; say how, and keep it in verify.json."""
    from rpam_lite.merge.verify import verify

    source, config, _ = merged_source(run)
    found = verify(
        merged_folder(run), source, config, run.recipe.seed, step=run.progress.start("verifying", len(source.names()))
    )
    write_json(run.folder / VERIFIED, {"version": 1, "tensors": [vars(check) for check in found]})
    compared = sum(check.compared for check in found)
    worst = max(found, key=lambda check: check.flushed)
    run.say(f"verified: {len(found)} tensors, {compared} values computed anew and compared, none off")
    if worst.flushed > 0:
        run.say(
            f"flushed to 0 in {run.recipe.merge.dtype}: at most {100 * worst.flushed:.3g} % of a tensor ({worst.name})"
        )


def _findings(run: Run) -> list[dict[str, Any]]:
    """What preflight found, if it ran."""
    file = run.folder / FINDINGS
    return list(read_json(file, "preflight's findings")["findings"]) if file.exists() else []


def _made_from(run: Run) -> dict[str, Any]:
    """What the merged config records of its origin."""
    recipe = run.recipe
    made_by: dict[str, Any] = {"options": recipe.merge.options, "seed": recipe.seed}
    if (statistics := run.of("statistics") / FILE).exists() and is_measured(recipe):
        made_by["statistics"] = identity(statistics)
    if recipe.merge.method == OURS:
        made_by = {"preset": recipe.fit.preset, "coefficients": identity(run.folder / COEFFICIENTS)}
        if recipe.fit.preset == "release":
            made_by["elements"] = identity(run.of("fit") / "elements")
    return {
        "version": __version__,
        "method": recipe.merge.method,
        **made_by,
        **{
            name: {"name": readable_name(parent), "sha256": identity(parent)}
            for name in ("long", "short", "base")
            if (parent := getattr(recipe.parents, name)) is not None
        },
        "read": [identity(folder) for folder in parent_folders(recipe)],
        "donor": recipe.merge.donor,
        "dtype": recipe.merge.dtype,
    }


def merged_source(run: Run) -> tuple[MergedSource | DecidingSource | MethodSource, dict[str, Any], Path]:
    """The merge as a tensor source, its config, and the donor's folder."""
    import torch

    from rpam_lite.checkpoint.pair import aligned, open_parent
    from rpam_lite.device import choose_device
    from rpam_lite.fit import coefficients
    from rpam_lite.merge.apply import MergedSource, MethodSource
    from rpam_lite.merge.decision import with_decision
    from rpam_lite.merge.methods import method_of

    recipe = run.recipe
    dtype = getattr(torch, recipe.merge.dtype)
    device = choose_device(recipe.merge.accelerator, "`merge.accelerator`")
    long, short, donor = run.pair()
    if recipe.merge.method == OURS:
        fitted = coefficients.load(run.folder / COEFFICIENTS)
        merged = MergedSource(long, short, fitted.of, dtype, device)
        return *with_decision(merged, donor.config, fitted.decision), donor.folder
    method, options = method_of(recipe.merge.method, recipe.merge.options)
    base = None
    if "base" in method.needs:
        if recipe.parents.base is None:
            raise RpamError(f"`merge.method` {method.name!r} needs the common base: name it under `parents.base`.")
        base = aligned(open_parent(recipe.parents.base), donor)
    measured = load_statistics(run) if method.measure is not None else {}
    source = MethodSource(method, options, long, short, base, recipe.seed, dtype, measured, device)
    return source, dict(donor.config), donor.folder


def methods_json() -> dict[str, Any]:
    """Every merge method with its needs, what it sees at once, its options with their defaults, and its source."""
    from rpam_lite.merge.methods import methods

    ours = {"name": OURS, "needs": ["capture", "fit"], "sees": "rows", "options": {}, "source": "arXiv 2601.03506"}
    others = [
        {
            "name": method.name,
            "needs": sorted(method.needs),
            "sees": "tensors" if method.whole else "rows",
            "options": dict(method.options),
            "source": method.source,
        }
        for method in methods().values()
    ]
    return {"version": 1, "methods": [ours, *others]}


def methods_table() -> Table:
    """The same as a table."""
    table = Table(show_edge=False)
    table.add_column("merge.method", no_wrap=True)
    for column in ("needs", "sees", "merge.options"):
        table.add_column(column, overflow="fold")
    table.add_column("source", no_wrap=True)
    for method in methods_json()["methods"]:
        options = ", ".join(f"{name}: {value:g}" for name, value in method["options"].items())
        told = "see `fit`" if method["name"] == OURS else options
        needs = ", ".join(method["needs"]) or "nothing"
        table.add_row(method["name"], needs, method["sees"], told, method["source"].removeprefix("arXiv "))
    return table
