"""The fit stage: the coefficients, or a family of them, through the streaming engine."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rpam_lite.errors import RpamError
from rpam_lite.pipeline.artefacts import SCRATCH
from rpam_lite.pipeline.deciding import decided_members, states_of
from rpam_lite.pipeline.dial import choose_member, member_folder
from rpam_lite.pipeline.kept_fit import keep_fit, keep_states, kept_fit, kept_states, write_fit
from rpam_lite.pipeline.memory import advice, peak_text
from rpam_lite.pipeline.release import fit_as_released
from rpam_lite.pipeline.stage import Run
from rpam_lite.pipeline.traces import calibration_traces
from rpam_lite.run_files import COEFFICIENTS_PLOT

if TYPE_CHECKING:
    import torch

    from rpam_lite.fit.coefficients import Coefficients
    from rpam_lite.fit.problem import Problem, Reducer
    from rpam_lite.fit.setup import Planned
    from rpam_lite.recipe import Fit, Setting

    Fitted = tuple[Coefficients, dict[str, Any]]  # with the contents of fit.json


def run_fit(run: Run) -> None:
    """Fit the coefficients; write them, their log and a picture."""
    from rpam_lite.fit.reduce import processes
    from rpam_lite.report.plots import plot_coefficients

    with processes(run.recipe.memory.accelerator) as group:
        kept = kept_fit(run) if run.recipe.family.decides and not group.rank else None
        if run.recipe.fit.preset == "release":
            if group.world > 1:
                raise RpamError("`fit.preset: release` fits in one process; run `rpam fit` without torchrun.")
            members: dict[float | None, Fitted] = {None: fit_as_released(run)}
        elif group.any(kept is not None):
            members = {} if kept is None else {None: kept}  # the first process has it, and goes on alone
        else:
            members = fit_share(run, group.rank, group.world, group.reduce)
            if run.recipe.family.decides and not group.rank:
                keep_fit(run, *members[None])
    if group.rank:
        return
    fitted, log = _take_member(run, _family(run, members)) if run.recipe.family.settings else members[None]
    if run.recipe.fit.preset != "release":
        _say_result(run, log)
    write_fit(run.of("fit"), fitted, log)
    plot_coefficients(fitted.means(), run.folder / COEFFICIENTS_PLOT)
    shutil.rmtree(run.of("fit") / SCRATCH, ignore_errors=True)  # now only: the dial could be interrupted


def _family(run: Run, members: dict[float | None, Fitted]) -> dict[Setting, Fitted]:
    """The members of the dial: one fit each, or the one fit with a decision row each."""
    from rpam_lite.recipe import Setting

    if not run.recipe.family.decides:
        return {Setting("price", price): fitted for price, fitted in members.items() if price is not None}
    fitted, log = members[None]
    if (states := kept_states(run)) is None:
        states = states_of(run, fitted)
        keep_states(run, states)
    decided = decided_members(run, fitted, states)
    return {setting: (own, log | {"decision": told}) for setting, (own, told) in decided.items()}


def _take_member(run: Run, family: dict[Setting, Fitted]) -> Fitted:
    """Keep every member of the family, and give the one that the dial chooses."""
    for setting, (fitted, log) in family.items():
        write_fit(member_folder(run, setting), fitted, log)
    return family[choose_member(run, family)]


def fit_share(run: Run, rank: int, world: int, reduce: Reducer) -> dict[float | None, Fitted]:
    """Fit on every `world`-th question from `rank` on; all processes together fit on all of them.

    Returns:
        By price (None without prices, and where a row decides) the coefficients and the contents of fit.json, the
        same in every process.
    """

    from rpam_lite.fit.setup import as_begun, open_problem, plan_recipe, prepare_torch, with_batches
    from rpam_lite.streaming.activations import load_questions
    from rpam_lite.streaming.choice import describe
    from rpam_lite.streaming.machine import peak_memory

    recipe, settings, folder = run.recipe, run.recipe.fit, run.of("fit")
    prepare_torch(recipe)
    questions = load_questions(run.of("capture"))
    planned = plan_recipe(recipe, questions, run.folder, run.of("capture"))
    scratch = folder / (SCRATCH if world == 1 else f"{SCRATCH}-{rank}")
    if world == 1:
        planned = as_begun(planned, scratch)
    run.say(f"plan: {describe(planned.plan.way)}")
    found: dict[float | None, Fitted] = {}
    with advice(planned), peak_memory(planned.skeleton.device) as peak:
        problem = open_problem(recipe, planned, questions, run.of("capture"), scratch)
        values = problem.grouping.start_values(settings.start).to(problem.device)
        run.say(_unknowns(len(values), settings))
        for price, shares in _shares(
            run, problem, planned, scratch, range(rank, len(questions), world), reduce
        ).items():
            if price is not None:
                run.say(f"price {price:g}: {int((shares > 0).sum())} of {len(shares)} traces")
            own = [q for q in range(rank, len(questions), world) if shares[q] > 0]
            member = with_batches(problem, own, shares, planned.plan.way.micro_tokens)
            # Each member starts where the one before it ended. Several processes could be stopped at different
            # steps: they always start anew.
            own_scratch = scratch / f"member-{len(found)}"
            values, log = _fit_member(run, planned, member, values, reduce, own_scratch, world == 1, first=not found)
            found[price] = problem.grouping.coefficients(values), log
    run.say(peak_text("the fit", planned, peak()))
    if world > 1:
        shutil.rmtree(scratch, ignore_errors=True)
    return found


def _unknowns(count: int, settings: Fit) -> str:
    if settings.granularity == "low_rank":
        return f"{count} numbers: one lambda a weight, as a field of rank {settings.rank} over each matrix"
    return f"{count} lambdas, one a {settings.granularity}"


def _shares(
    run: Run, problem: Problem, planned: Planned, scratch: Path, own: range, reduce: Reducer
) -> dict[float | None, torch.Tensor]:
    """Weight of every trace in the loss, float32 [traces] with sum 1, by price (None without prices)."""
    import torch

    from rpam_lite.fit.batches import question_shares
    from rpam_lite.fit.setup import open_stores
    from rpam_lite.fit.shares import answer_shares, loss_of_the_other_parent, priced_shares

    is_long, long_weight = problem.questions.is_long, run.recipe.fit.long_weight
    if not run.recipe.family.settings:
        return {None: question_shares(problem.questions, long_weight)}
    weights = {price: torch.tensor(found) for price, found in calibration_traces(run).weights.items()}
    if run.recipe.family.decides:
        return {None: answer_shares(weights[None], is_long, long_weight)}
    prices = {price: found for price, found in weights.items() if price is not None}
    for price, found in prices.items():
        if not found.any():
            raise RpamError(f"`dial.prices` {price:g}: at this price no calibration question weighs anything; drop it.")
    way = planned.plan.way
    stores = partial(open_stores, kind=way.store, scratch=scratch)
    other = loss_of_the_other_parent(problem, own, way.micro_tokens, stores, reduce)
    for name, side in (("long", is_long), ("short", ~is_long)):
        if side.any():
            run.say(f"the other parent loses {other[side][0]:.2f} on traces that select {name}")
    return {price: priced_shares(found, is_long, long_weight, other) for price, found in prices.items()}


def _fit_member(
    run: Run,
    planned: Planned,
    problem: Problem,
    start: torch.Tensor,
    reduce: Reducer,
    scratch: Path,
    keeps_state: bool,
    first: bool,
) -> tuple[torch.Tensor, dict[str, Any]]:
    """One fit; the first may start in closed form. Gives lambdas [values] and the log."""
    from rpam_lite.fit.joint import fit_jointly, hessian_eigenvalues
    from rpam_lite.fit.sequential import fit_sequentially
    from rpam_lite.fit.setup import open_stores
    from rpam_lite.streaming.choice import describe

    settings, values = run.recipe.fit, start
    scratch.mkdir(parents=True, exist_ok=True)
    states = (scratch / "layers.pt", scratch / "joint.pt") if keeps_state else (None, None)
    stores = open_stores(problem, planned.plan.way.store, scratch)
    layer_log: list[dict[str, float]] = []
    # One lambda for everything belongs to no layer.
    if first and settings.sequential and settings.granularity != "scalar":
        step = run.progress.start("fitting layer by layer", planned.skeleton.layers)
        values, layer_log = fit_sequentially(problem, values, stores.upstream, reduce, states[0], step)
    step = run.progress.start("fitting all lambdas together", settings.steps)
    joint = fit_jointly(problem, values, stores, reduce, states[1], step)
    eigenvalues = hessian_eigenvalues(problem, joint.values, stores, reduce) if settings.hessian else None
    log = {
        "version": 3,
        "way": describe(planned.plan.way),
        "layers": layer_log,
        "steps": joint.curve,
        "stopped": joint.stopped,
        "warning": _warning(joint.curve),
        "hessian": eigenvalues and {"eigenvalues": eigenvalues, "condition": _condition(eigenvalues)},
    }
    return joint.values, log


def _condition(eigenvalues: list[float]) -> float | None:
    """Largest by smallest eigenvalue; None where the loss is not convex."""
    return eigenvalues[-1] / eigenvalues[0] if eigenvalues[0] > 0 else None


def _warning(steps: list[dict[str, float]]) -> str | None:
    """What is wrong with a curve; the report repeats it."""
    if min(entry["loss"] for entry in steps) < steps[0]["loss"]:
        return None
    return "the loss never fell below its start; choose another `fit.start` or raise `fit.steps`"


def _say_result(run: Run, log: dict[str, Any]) -> None:
    steps = log["steps"]
    best = min(steps, key=lambda entry: entry["loss"])
    run.say(
        "; ".join(f"{term} {steps[0][term]:.4f} -> {best[term]:.4f}" for term in best if steps[0][term] or best[term])
    )
    run.say(f"{len(steps)} joint steps, {log['stopped']}")
    if log["warning"]:
        run.say(f"WARNING: {log['warning']}")
