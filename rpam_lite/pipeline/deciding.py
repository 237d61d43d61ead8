"""The members of a dial by decision: one fit of lambda, and a row of the output head for each of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rpam_lite.errors import RpamError
from rpam_lite.pipeline.artefacts import SCRATCH
from rpam_lite.pipeline.memory import advice
from rpam_lite.pipeline.stage import Run
from rpam_lite.pipeline.traces import seen_rows

if TYPE_CHECKING:
    import torch

    from rpam_lite.fit.coefficients import Coefficients
    from rpam_lite.fit.decision import DecisionFit, DecisionStates, Features, Vector
    from rpam_lite.recipe import Setting
    from rpam_lite.streaming.merged import LambdaOf


def check_decidable(run: Run) -> None:
    """Refuse a dial for which no row can be fitted, before anything is computed for it.

    Raises:
        RpamError: No token tells Long's answers from Short's, or every member is a budget below Short's own tokens.
    """
    from rpam_lite.patterns.label import labelled
    from rpam_lite.patterns.opening import opening_token
    from rpam_lite.patterns.price import with_estimates

    rows = seen_rows(run)
    labelled(rows)
    opening_token(rows)
    settings, least = run.recipe.family.settings, _least_budget(with_estimates(rows))
    if all(_is_too_small(setting, least) for setting in settings):
        raise RpamError(f"`dial`: {', '.join(s.name for s in settings)}: {_too_small(least)}")


def _least_budget(rows: Sequence[Mapping[str, Any]]) -> float:
    """Short's mean tokens as a share of Long's."""
    return float(sum(row["tokens_short"] for row in rows) / sum(row["tokens_long"] for row in rows))


def _is_too_small(setting: Setting, least: float) -> bool:
    return setting.kind == "budget" and setting.value <= least


def _too_small(least: float) -> str:
    if least >= 1:
        return (
            f"Short's own answers have {100 * least:.1f} % of Long's mean tokens, so that no budget saves any; are the "
            "parents swapped?"
        )
    return f"Short's own answers have {100 * least:.1f} % of Long's mean tokens, and no merge has fewer; ask for more."


def _too_loud(gap: float) -> str:
    return (
        f"within an answer the think token has a probability of up to {100 / (1 + math.exp(-gap)):.0f} %, so that some "
        "answers may open a think block late. Raise `capture.questions_per_class`, or take another budget."
    )


def decided_members(
    run: Run, fitted: Coefficients, states: DecisionStates
) -> dict[Setting, tuple[Coefficients, dict[str, Any]]]:
    """Fit a decision row for every setting of the dial but budgets below Short's own tokens.

    Args:
        run: The run.
        fitted: Lambda, the same for all of them.
        states: What the merge of it knows (`states_of`).

    Returns:
        By setting the coefficients with their row, and what `fit.json` tells of it.

    Raises:
        RpamError: No token tells Long's answers from Short's.
    """
    import numpy as np

    from rpam_lite.fit.coefficients import DecisionRow
    from rpam_lite.fit.decision import features_of
    from rpam_lite.fit.firmness import LOUDEST, firm_row
    from rpam_lite.patterns.opening import opening_token
    from rpam_lite.patterns.price import with_estimates

    seen = seen_rows(run)
    token, rows = opening_token(seen), with_estimates(seen)
    features = features_of(states)
    members: dict[Setting, tuple[Coefficients, dict[str, Any]]] = {}
    least = _least_budget(rows)
    for setting in run.recipe.family.settings:
        if _is_too_small(setting, least):
            run.say(f"WARNING: {setting.name} is left out. {_too_small(least)}")
            continue
        found = _fitted(setting, features, rows)
        firm = firm_row(states, found.row)
        told = _told(found, token, rows) | {"firmness": firm.firmness, "loudest": firm.loudest}
        run.say(
            f"{setting.name}: thinks on {100 * told['thinks']:.0f} % of the questions that a row was not fitted on, "
            f"{100 * told['accuracy']:.1f} % right at {told['tokens']:.1f} tokens a question by the parents' answers"
        )
        if firm.loudest is not None and firm.loudest > -LOUDEST:
            run.say(f"WARNING: {setting.name}: {_too_loud(firm.loudest)}")
        row = DecisionRow(token=token, row=tuple(firm.row.astype(np.float32).tolist()))
        members[setting] = fitted.deciding(row), told
    return members


def _fitted(setting: Setting, features: Features, rows: Sequence[Mapping[str, Any]]) -> DecisionFit:
    """The row of one setting, both parents asked (`with_estimates`)."""
    import numpy as np

    from rpam_lite.fit.decision import ByParent, fit_accuracy, fit_budget, fit_price
    from rpam_lite.patterns.price import regret

    def regrets(price: float) -> Vector:
        return np.array([regret(row, price) for row in rows])

    if setting.kind == "price":
        return fit_price(features, regrets(setting.value), setting.value)
    (right_long, tokens_long), (right_short, tokens_short) = (
        by_parents(rows, [parent] * len(rows)) for parent in ("long", "short")
    )
    tokens, right = ByParent(tokens_long, tokens_short), ByParent(right_long, right_short)
    if setting.kind == "budget":
        return fit_budget(features, regrets, tokens, setting.value * float(tokens_long.mean()))
    return fit_accuracy(features, regrets, tokens, right, least_accuracy(float(right_long.mean()), setting.value))


def least_accuracy(long: float, points: float) -> float:
    """What is at most so many points below Long's accuracy; rounding alone breaks no wish."""
    return long - points / 100 - 1e-9


def states_of(run: Run, fitted: Coefficients) -> DecisionStates:
    """Run the merge once over all prompts and the captured answers, in the way that the fit was planned."""
    import torch

    from rpam_lite.device import release_memory
    from rpam_lite.fit.decision_states import decision_states
    from rpam_lite.fit.setup import open_weights, plan_recipe, prepare_torch
    from rpam_lite.patterns.opening import opening_token
    from rpam_lite.streaming.activations import load_questions
    from rpam_lite.streaming.machine import device_of
    from rpam_lite.streaming.passes import Streamed

    prepare_torch(run.recipe)
    rows = seen_rows(run)
    token, answers = opening_token(rows), load_questions(run.of("capture"))
    prompts = [torch.tensor(row["prompt_ids"]) for row in rows]
    release_memory(device_of(run.recipe.memory))  # what the fit held is free for this
    planned = plan_recipe(run.recipe, answers, run.folder, run.of("capture"))
    with advice(planned):
        way, scratch = planned.plan.way, run.of("fit") / SCRATCH
        source, ends = open_weights(planned, [*prompts, *answers.token_ids], scratch)
        model = Streamed(source, ends, _lambda_of(fitted, planned.skeleton.device), way.dtype)
        return decision_states(model, prompts, answers, token, way.micro_tokens, way.store, scratch / "decisions")


def _lambda_of(fitted: Coefficients, device: torch.device) -> LambdaOf:
    """Lambda by tensor name, as the streaming engine reads it."""
    import torch

    from rpam_lite.checkpoint.arithmetic import LowRank

    def lambda_of(name: str) -> torch.Tensor:
        value = fitted.of(name)
        return (value.dense() if isinstance(value, LowRank) else torch.as_tensor(value)).to(device)

    return lambda_of


def _told(found: DecisionFit, token: int, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What fit.json says of a row; what it does as on questions that it was not fitted on, by the parents' answers."""
    from quant.statistics import interval

    chosen = ["long" if thinks else "short" for thinks in found.thinks]
    right, tokens = by_parents(rows, chosen)
    bounds = {"pass@1": interval(right), "tokens": interval(tokens)}
    return {
        "token": token,
        "questions": len(rows),
        "price": found.price,
        "ridge": found.ridge,
        "thinks": float(found.thinks.mean()),
        "accuracy": bounds["pass@1"].value,
        "tokens": bounds["tokens"].value,
        "intervals": {name: [b.low, b.high] for name, b in bounds.items()},
    }


def by_parents(rows: Sequence[Mapping[str, Any]], chosen: Sequence[str]) -> tuple[Vector, Vector]:
    """Share of right answers and mean tokens of every question where the chosen parent answers it.

    Args:
        rows: Of patterns.jsonl, both parents asked (`with_estimates`).
        chosen: "long" or "short", one a row.
    """
    import numpy as np

    pairs = list(zip(rows, chosen, strict=True))
    return (
        np.array([row[f"correct_{parent}"] / row[f"samples_{parent}"] for row, parent in pairs]),
        np.array([float(row[f"tokens_{parent}"]) for row, parent in pairs]),
    )
