"""The members of a dial by decision: one fit of lambda, and a row of the output head for each of them."""

from __future__ import annotations

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
    from rpam_lite.fit.decision import DecisionFit, DecisionStates
    from rpam_lite.recipe import Setting
    from rpam_lite.streaming.merged import LambdaOf


def check_decidable(run: Run) -> None:
    """Refuse a dial for which no row can be fitted, before anything is computed for it.

    Raises:
        RpamError: No token tells Long's answers from Short's, or a budget is below Short's own tokens.
    """
    from rpam_lite.patterns.opening import opening_token
    from rpam_lite.patterns.price import with_estimates

    opening_token(seen_rows(run))
    rows = with_estimates(seen_rows(run))
    least = sum(row["tokens_short"] for row in rows) / sum(row["tokens_long"] for row in rows)
    for budget in run.recipe.family.budgets:
        if budget <= least:
            raise RpamError(
                f"`dial.budgets` {budget:g}: Short's own answers have {100 * least:.1f} % of Long's mean tokens; "
                "no merge of them has fewer."
            )


def decided_members(run: Run, fitted: Coefficients) -> dict[Setting, tuple[Coefficients, dict[str, Any]]]:
    """Fit a decision row for every setting of the dial.

    Args:
        run: The run.
        fitted: Lambda, the same for all of them.

    Returns:
        By setting the coefficients with their row, and what `fit.json` tells of it.

    Raises:
        RpamError: No token tells Long's answers from Short's.
    """
    import numpy as np

    from rpam_lite.fit.coefficients import DecisionRow
    from rpam_lite.fit.decision import Tokens, Vector, features_of, fit_budget, fit_price
    from rpam_lite.patterns.opening import opening_token
    from rpam_lite.patterns.price import regret, with_estimates

    rows = with_estimates(seen_rows(run))
    token = opening_token(seen_rows(run))
    features = features_of(_states(run, fitted, rows, token))
    tokens = Tokens(*(np.array([float(row[f"tokens_{parent}"]) for row in rows]) for parent in ("long", "short")))

    def regrets(price: float) -> Vector:
        return np.array([regret(row, price) for row in rows])

    members: dict[Setting, tuple[Coefficients, dict[str, Any]]] = {}
    for setting in run.recipe.family.settings:
        if setting.kind == "price":
            found = fit_price(features, regrets(setting.value), setting.value, tokens)
        else:
            found = fit_budget(features, regrets, tokens, setting.value * float(tokens.long.mean()))
        run.say(
            f"{setting.name}: thinks on {100 * found.thinks:.0f} % of the questions that a row was not fitted on, "
            f"{found.tokens:.1f} tokens a question by the parents' answers"
        )
        row = DecisionRow(token=token, row=tuple(found.row.astype(np.float32).tolist()))
        members[setting] = fitted.deciding(row), _told(found, token, len(rows))
    return members


def _states(run: Run, fitted: Coefficients, rows: Sequence[Mapping[str, Any]], token: int) -> DecisionStates:
    """Run the merge once over all prompts and the captured answers, in the way that the fit was planned."""
    import torch

    from rpam_lite.device import release_memory
    from rpam_lite.fit.decision_states import decision_states
    from rpam_lite.fit.setup import open_weights, plan_recipe
    from rpam_lite.streaming.activations import load_questions
    from rpam_lite.streaming.machine import device_of
    from rpam_lite.streaming.passes import Streamed

    answers = load_questions(run.of("capture"))
    prompts = [torch.tensor(row["prompt_ids"]) for row in rows]
    release_memory(device_of(run.recipe.memory))  # what the fit held is free for this
    planned = plan_recipe(run.recipe, answers, run.folder, run.of("capture"))
    with advice(planned):
        source, ends = open_weights(planned, [*prompts, *answers.token_ids], run.of("fit") / SCRATCH)
        model = Streamed(source, ends, _lambda_of(fitted, planned.skeleton.device), planned.plan.way.dtype)
        return decision_states(model, prompts, answers, token, planned.plan.way.micro_tokens)


def _lambda_of(fitted: Coefficients, device: torch.device) -> LambdaOf:
    """Lambda by tensor name, as the streaming engine reads it."""
    import torch

    from rpam_lite.checkpoint.arithmetic import LowRank

    def lambda_of(name: str) -> torch.Tensor:
        value = fitted.of(name)
        return (value.dense() if isinstance(value, LowRank) else torch.as_tensor(value)).to(device)

    return lambda_of


def _told(found: DecisionFit, token: int, questions: int) -> dict[str, Any]:
    """What fit.json says of a row."""
    return {
        "token": token,
        "questions": questions,
        "price": found.price,
        "ridge": found.ridge,
        "thinks": found.thinks,
        "tokens": found.tokens,
    }
