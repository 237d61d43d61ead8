"""The merge stage: write the merged checkpoint, then prove it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rpam_lite import __version__
from rpam_lite.checkpoint.files import write_json
from rpam_lite.pipeline.artefacts import merged_folder
from rpam_lite.pipeline.stage import Run, identity

if TYPE_CHECKING:
    from rpam_lite.merge.apply import MergedSource


def run_merge(run: Run) -> None:
    """Write the merged checkpoint as an ordinary Hugging Face folder."""
    import torch

    from rpam_lite.checkpoint.write import write_checkpoint

    recipe = run.recipe
    source, config, donor = merged_source(run)
    config["dtype" if "dtype" in config else "torch_dtype"] = recipe.merge.dtype
    write_checkpoint(
        source,
        config,
        donor,
        merged_folder(run),
        getattr(torch, recipe.merge.dtype),
        _made_from(run),
        recipe.merge.shard_size,
        partial(run.progress.start, "merging"),
    )
    verify_merge(run)


def verify_merge(run: Run) -> None:
    """Compare the merged checkpoint with what it must be; say how, and keep it in verify.json."""
    from rpam_lite.merge.verify import verify

    source, _, _ = merged_source(run)
    found = verify(
        merged_folder(run), source, run.recipe.seed, step=run.progress.start("verifying", len(source.names()))
    )
    write_json(run.of("merge") / "verify.json", {"version": 1, "tensors": [vars(check) for check in found]})
    compared = sum(check.compared for check in found)
    worst = max(found, key=lambda check: check.flushed)
    run.say(f"verified: {len(found)} tensors, {compared} values compared with S + lambda * (L - S), none off")
    if worst.flushed > 0:
        run.say(
            f"flushed to 0 in {run.recipe.merge.dtype}: at most {100 * worst.flushed:.3g} % of a tensor ({worst.name})"
        )


def _made_from(run: Run) -> dict[str, Any]:
    """What the merged config records of its origin."""
    recipe, coefficients = run.recipe, run.of("fit") / "coefficients.json"
    return {
        "version": __version__,
        "method": recipe.fit.preset or "rpam",
        "formula": "W = S + lambda * (L - S)",
        **{
            name: {"name": parent.name, "sha256": identity(parent)}
            for name, parent in (("long", recipe.parents.long), ("short", recipe.parents.short))
        },
        "coefficients": identity(coefficients),
        "donor": recipe.merge.donor,
        "dtype": recipe.merge.dtype,
    }


def merged_source(run: Run) -> tuple[MergedSource, dict[str, Any], Path]:
    """The merge as a tensor source, a copy of the donor's config, and the donor's folder."""
    import torch

    from rpam_lite.fit import coefficients
    from rpam_lite.merge.apply import MergedSource

    recipe = run.recipe
    long, short, donor = run.pair()
    fitted = coefficients.load(run.of("fit") / "coefficients.json")
    source = MergedSource(long, short, fitted.of, getattr(torch, recipe.merge.dtype))
    return source, dict(donor.config), donor.folder
