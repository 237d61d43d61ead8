"""The merge in other programs' forms: a mergekit recipe, a LoRA adapter."""

from __future__ import annotations

from pathlib import Path

from rpam_lite.checkpoint.files import write_text
from rpam_lite.errors import RpamError
from rpam_lite.pipeline.manifest import is_done
from rpam_lite.pipeline.merging import merged_source
from rpam_lite.pipeline.stage import Run, parent_names
from rpam_lite.pipeline.trip import STAGES
from rpam_lite.recipe import OURS
from rpam_lite.run_files import COEFFICIENTS

_WITHOUT_ROW = "set `dial.by: fit` in the recipe, or take the `dial` out, and `rpam run` again."


def _require_fit(run: Run) -> None:
    """Coefficients of another recipe would give another merge without a word."""
    if STAGES["fit"].applies(run.recipe) and not is_done(STAGES["fit"], STAGES, run):
        raise RpamError(f"{run.of('fit')}: holds no fit of this recipe as it is now; `rpam run` or `rpam fit` first.")


def write_mergekit(run: Run, file: Path) -> None:
    """Write the fitted merge as a mergekit recipe.

    Raises:
        RpamError: There is no fit of this recipe, or mergekit can't do this merge.
    """
    import yaml

    from export.mergekit import mergekit_config
    from rpam_lite.checkpoint.aligned import AlignedSource
    from rpam_lite.fit import coefficients
    from rpam_lite.streaming.skeleton import Skeleton

    recipe = run.recipe
    _require_fit(run)
    if recipe.merge.method != OURS:
        raise RpamError(
            f"`merge.method` {recipe.merge.method!r}: only fitted coefficients are written for mergekit; "
            "set `merge.method: rpam`."
        )
    fitted = coefficients.load(run.folder / COEFFICIENTS)
    if fitted.decision is not None:
        raise RpamError(f"The merge has a decision row, for which mergekit has no place; {_WITHOUT_ROW}")
    long, short, donor = run.pair()
    if not (long.as_stored and short.as_stored):
        raise RpamError(
            "A parent is a LoRA adapter, which a mergekit recipe of ours can't name; merge it with peft first."
        )
    if isinstance(long, AlignedSource) or isinstance(short, AlignedSource):
        raise RpamError(
            "The parents' vocabularies differ, and mergekit would mix rows of different tokens by id; "
            "take the merged checkpoint as it is."
        )
    skeleton = Skeleton(donor.folder)
    layers = [list(skeleton.checkpoint_names(i).values()) for i in range(skeleton.layers)]
    parents = recipe.parents
    config = mergekit_config(
        parents.long, parents.short, recipe.merge.donor, layers, skeleton.outside, fitted.of, recipe.merge.dtype
    )
    write_text(file, yaml.safe_dump(config, sort_keys=False))
    run.say(f"for mergekit: mergekit-yaml {file} OUTPUT")
    if donor.folder not in (parents.long, parents.short):  # a copy of ours, whose template opens no think block
        # A template in mergekit's recipe is taken for a file's name first, and is too long for one.
        run.say(f"then copy the files of {donor.folder}, without config.json, into OUTPUT: mergekit keeps the prefill")


def write_adapter(run: Run, folder: Path, over: str, rank: int, floor: float) -> None:
    """Write the merge as a LoRA adapter over one parent.

    Raises:
        RpamError: `over` names no parent, there is no fit, the vocabularies differ, or too little is kept.
    """
    import torch

    from export.gguf.adapter import write_adapter_gguf
    from export.lora import write_lora
    from rpam_lite.checkpoint.aligned import AlignedSource
    from rpam_lite.merge.decision import DecidingSource

    if over not in ("long", "short"):
        raise RpamError(f"--over {over}: must be long or short.")
    _require_fit(run)
    merged, _, _ = merged_source(run)
    if isinstance(merged, DecidingSource):
        raise RpamError(f"The merge has a decision row, for which an adapter has no place; {_WITHOUT_ROW}")
    long, short, donor = run.pair()
    parent = long if over == "long" else short
    if not parent.as_stored:
        raise RpamError(f"--over {over}: is an adapter itself; an adapter needs a whole checkpoint below it.")
    if isinstance(parent, AlignedSource):
        raise RpamError(f"--over {over}: its vocabulary differs from the merge's; take the donor's side.")

    def exact(name: str) -> torch.Tensor:
        return merged.exact_rows(name, 0, merged.shape(name)[0])

    step = run.progress.start("decomposing", len(merged.names()))
    path = run.recipe.parents.long if over == "long" else run.recipe.parents.short
    kept = write_lora(
        merged.names(),
        lambda n: exact(n) - parent.get(n).float(),
        exact,
        str(path),
        donor.folder,
        rank,
        floor,
        folder,
        step,
    )
    share = sum(k.kept for k in kept) / max(1e-30, sum(k.energy for k in kept))
    run.say(f"{folder}: a rank {rank} adapter over {over}, with {100 * share:.1f} % of the difference's energy")
    file = folder / "adapter-f16.gguf"
    left_out = write_adapter_gguf(folder, parent.config, path, file)
    lost = f", without {left_out} norms, for which it has no place" if left_out else ""
    run.say(f"{file}: the same for llama.cpp{lost}")
    for one in sorted(kept, key=lambda k: k.energy - k.kept, reverse=True)[:5]:
        run.say(f"  {100 * one.share:.1f} % of {one.name}")


def write_direct(run: Run, file: Path, file_type: str) -> None:
    """Merge and export in one pass: the GGUF file straight from the parents, without a merged checkpoint.

    Raises:
        RpamError: An unknown type, there is no fit of this recipe, or the file is not what it must be.
    """
    from typing import get_args

    from export.gguf.write import GgufType, write_gguf
    from rpam_lite.pipeline.proving import prove_export

    if file_type not in get_args(GgufType):
        raise RpamError(f"--type {file_type}: must be one of {', '.join(get_args(GgufType))}.")
    _require_fit(run)
    source, config, donor = merged_source(run)
    step = run.progress.start("merging and exporting", len(source.names()))
    known: GgufType = file_type  # type: ignore[assignment]
    write_gguf(source, config, donor, file, known, run.recipe.name, step, parent_names(run.recipe))
    prove_export(run, file, known, source, config, donor)
