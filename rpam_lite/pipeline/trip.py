"""The trip: every stage with what it depends on, and how they are run one after another."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

from quant.records import RECORD_VERSION
from quant.tasks.grader import GRADER_VERSION
from rpam_lite.error_codes import code_of
from rpam_lite.errors import RpamError
from rpam_lite.patterns.label import PATTERN_VERSION
from rpam_lite.pipeline import capturing, checking, depends, fitting, merging, quantizing, reporting, stages, statistics
from rpam_lite.pipeline.dial import refuse_dial
from rpam_lite.pipeline.eval_stage import run_eval
from rpam_lite.pipeline.kept_fit import FIT_VERSION
from rpam_lite.pipeline.manifest import Reason, execute, is_done, needed_by, removed_files, why_not_done
from rpam_lite.pipeline.names import STAGE_HELP
from rpam_lite.pipeline.stage import Run, Stage, parent_folders
from rpam_lite.recipe import with_dial
from rpam_lite.run_files import MANIFEST

_MEASURED = {"method", "options", "donor"}

_ORDER = (
    Stage(
        "check",
        (),
        lambda r: r.model_dump(mode="json"),
        depends.everything,
        checking.run_check,
    ),
    Stage(
        "label",
        (),
        lambda r: {
            "name": r.name,
            "seed": r.seed,
            "engine_threads": r.engine_threads,
            "merge.donor": r.merge.donor,
            "merge.think_prefill": r.merge.think_prefill,
            "export.type": r.export.type,
            "version of the grader": GRADER_VERSION,
            "version of the labels": PATTERN_VERSION,
            "label": r.label.model_dump(exclude={"questions"}),
        },
        lambda r: [*parent_folders(r), r.label.file],
        stages.run_label,
    ),
    Stage(
        "capture",
        ("label",),
        lambda r: {
            "seed": r.seed,
            "threads": r.threads,
            "merge.donor": r.merge.donor,
            "memory": r.memory.model_dump(),
            "capture": r.capture.model_dump(),
            "hidden states": r.reads_hidden_states,
            "dial": depends.captured(r.family),
        },
        parent_folders,
        capturing.run_capture,
        version=3,
        applies=statistics.is_captured,
        refuses=capturing.refuse_capture,
    ),
    Stage(
        "fit",
        ("capture", "label"),
        lambda r: {
            "seed": r.seed,
            "threads": r.threads,
            "merge.donor": r.merge.donor,
            "memory": r.memory.model_dump(),
            "fit": r.fit.model_dump(),
            "dial": r.family.model_dump(),
            "how the dial measures": depends.measured(r) if r.family.settings else None,
        },
        parent_folders,
        fitting.run_fit,
        applies=depends.fits,
        refuses=refuse_dial,
        version=FIT_VERSION,
    ),
    Stage(
        "statistics",
        ("capture",),
        lambda r: {
            "seed": r.seed,
            "threads": r.threads,
            "merge": r.merge.model_dump(include=_MEASURED),
            "memory": r.memory.model_dump(),
        },
        depends.merged_folders,
        statistics.run_statistics,
        applies=statistics.is_measured,
    ),
    Stage(
        "merge",
        ("fit", "statistics"),
        lambda r: {"name": r.name, "seed": r.seed, "merge": r.merge.model_dump()},
        depends.merged_folders,
        merging.run_merge,
    ),
    Stage(
        "export",
        ("merge",),
        lambda r: {"name": r.name, "export": r.export.model_dump()},
        lambda r: [r.label.file],
        stages.run_export,
    ),
    Stage(
        "imatrix",
        ("label", "merge"),
        lambda r: {
            "name": r.name,
            "seed": r.seed,
            "threads": r.threads,
            "memory": r.memory.model_dump(),
            "capture": r.capture.model_dump(),
        },
        lambda r: [],
        quantizing.run_imatrix,
        applies=lambda r: r.quantize.imatrix,
    ),
    Stage(
        "quantize",
        ("merge", "export", "imatrix"),
        lambda r: {"name": r.name, "quantize": r.quantize.model_dump(), "ollama": r.ollama.model_dump()},
        lambda r: [],
        quantizing.run_quantize,
    ),
    Stage(
        "divergence",
        ("label", "export", "quantize"),
        lambda r: {
            "seed": r.seed,
            "engine_threads": r.engine_threads,
            "capture": r.capture.model_dump(),
            "quantize.types": r.quantize.types,
        },
        lambda r: [],
        quantizing.run_divergence,
    ),
    Stage(
        "eval",
        ("fit", "label", "export", "quantize"),
        lambda r: {
            "seed": r.seed,
            "engine_threads": r.engine_threads,
            "version of the grader": GRADER_VERSION,
            "version of the records": RECORD_VERSION,
            "merge": r.merge.model_dump(),
            "members of the dial": [setting.name for setting in r.family.settings],
            "eval": r.eval.model_dump(exclude={"questions"}),
        },
        lambda r: [*parent_folders(r), r.eval.file],
        run_eval,
        version=2,
        keeps_files=True,
    ),
    Stage(
        "report",
        ("fit", "merge", "quantize", "divergence", "eval"),
        # All of it but for its paths, since the page tells the recipe.
        lambda r: r.model_dump(mode="json", exclude={"parents": True, "label": {"questions"}, "eval": {"questions"}}),
        lambda r: [],
        reporting.run_report,
        version=4,
        completes=reporting.completed_files,
    ),
)
STAGES = {stage.name: stage for stage in _ORDER}


def run_all(run: Run) -> None:
    """Run every stage that is not done yet, in order, and print the closing table."""
    reused = []
    for stage in _ORDER:
        if not stage.applies(run.recipe):
            continue
        if why_runs(stage.name, run) is None:
            reused.append(stage.name)
            continue
        _say_reused(reused, run)
        reused = []
        _run(stage, run)
    _say_reused(reused, run)
    stages.say_closing(run)


def why_runs(name: str, run: Run) -> Reason | None:
    """Why a run would do this stage, of those that the recipe needs; None if it would reuse what is there."""
    why = why_not_done(STAGES[name], STAGES, run)
    if why is None and removed_files(name, run):
        readers = [s.name for s in _ORDER if s.applies(run.recipe) and name in s.needs and why_runs(s.name, run)]
        return Reason("removed", f"removed by `rpam clean`, and {readers[0]} needs its files") if readers else None
    return why


def run_one(name: str, run: Run) -> None:
    """Run one stage anew on the files of an earlier run.

    Raises:
        RpamError: A stage that it needs is not done, or was done with another recipe.
    """
    if name != "check" and not is_done(STAGES["check"], STAGES, run):
        _run(STAGES["check"], run)
    if not STAGES[name].applies(run.recipe):
        raise RpamError(
            f"`merge.method` is {run.recipe.merge.method!r}, which does without {name!r}; "
            "`rpam run` takes the stages that it needs."
        )
    for needed in needed_by(STAGES[name], STAGES, run.recipe):
        require_files(needed, name, run)
    _run(STAGES[name], run)
    if name == "report":
        stages.say_closing(run)


def require_files(needed: str, name: str, run: Run) -> None:
    """Check that a stage is done and that its files are there.

    Args:
        needed: The stage.
        name: What needs it.
        run: The run.

    Raises:
        RpamError: It is not, or `rpam clean` removed them.
    """
    if not is_done(STAGES[needed], STAGES, run):
        why = f"stage {needed!r} is not done for this recipe as it is now"
    elif removed_files(needed, run):
        why = f"`rpam clean` removed files of stage {needed!r}"
    else:
        return
    raise RpamError(f"{run.of(needed)}: {why}, and {name!r} needs its files; run `rpam {needed}` or `rpam run` first.")


def fit_family(run: Run, members: Mapping[str, str | None], wish: Mapping[str, float | None]) -> None:
    """Fit these members of a dial and choose one, capturing first what they need.

    Args:
        run: The run.
        members: Numbers with commas between them, by the options of `rpam fit`; None where not given.
        wish: What the member must do, by the recipe's names under `dial`.

    Raises:
        RpamError: They are no such numbers, or the labels are not done.
    """
    recipe = with_dial(run.recipe, members, wish)
    priced = replace(run, recipe=recipe)
    if not is_done(STAGES["capture"], STAGES, priced) or removed_files("capture", priced):
        run_one("capture", priced)
    run_one("fit", priced)
    if recipe.dial != run.recipe.dial:
        wanted = recipe.dial.model_dump(mode="json", exclude_defaults=True)
        run.say(f"to go on with this merge, write `dial: {json.dumps(wanted)}` into the recipe, and `rpam run` it")


def verify_again(run: Run) -> None:
    """Verify a merge that an earlier run wrote; one that is wrong counts as not done from then on.

    Raises:
        RpamError: There is none, or it is not what it must be.
    """
    if not is_done(STAGES["merge"], STAGES, run):
        raise RpamError(f"{run.of('merge')}: holds no finished merge of this recipe as it is now; `rpam run` first.")
    try:
        merging.verify_merge(run)
    except RpamError as error:
        if code_of(error) != "E14":
            raise
        (run.of("merge") / MANIFEST).unlink()
        raise RpamError(f"{error} `rpam run` writes it anew: it counts as not done now.", code="E14") from None


def _say_reused(names: list[str], run: Run) -> None:
    if names:
        run.say(f"reused from {run.folder}: {', '.join(names)}")


def _run(stage: Stage, run: Run) -> None:
    run.say(f"[{stage.name}] {STAGE_HELP[stage.name]}")
    seconds = execute(stage, STAGES, run)
    run.say(f"[{stage.name}] done in {seconds:.1f} s: {run.of(stage.name)}")
