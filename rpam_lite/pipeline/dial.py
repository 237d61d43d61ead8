"""The dial's choice: where a family of merges stands on calibration questions, and which member is taken."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rpam_lite.checkpoint.files import read_json, write_json
from rpam_lite.errors import RpamError
from rpam_lite.pipeline.artefacts import parent_gguf
from rpam_lite.pipeline.deciding import by_parents, check_decidable, least_accuracy
from rpam_lite.pipeline.measuring import Asking, Row, measure_rows, row_key, write_coefficients_gguf
from rpam_lite.pipeline.stage import Run, identity, parent_folders
from rpam_lite.pipeline.traces import seen_rows, unseen_keys
from rpam_lite.recipe import Setting
from rpam_lite.run_files import COEFFICIENTS_FILE, FRONTIER

if TYPE_CHECKING:
    from quant.frontier import Choice
    from quant.records import Record
    from quant.tasks.questions import Question
    from rpam_lite.fit.coefficients import Coefficients
    from rpam_lite.recipe import Dial

    Fitted = tuple[Coefficients, Mapping[str, Any]]  # with the contents of fit.json

POINTS_BELOW_LONG = 1.0  # where the recipe wishes nothing


def unseen_questions(run: Run) -> list[Question]:
    """Calibration questions that no fit reads, to choose on.

    Raises:
        RpamError: There are too few questions to set any aside.
    """
    from quant.tasks.questions import read_task_file
    from rpam_lite.preflight.questions import task_file

    keys = set(unseen_keys(run))
    if not keys:
        raise RpamError(
            f"{run.recipe.label.file}: holds fewer than three questions a level, so that the dial can set "
            "none aside to choose on; add questions, raise `dial.questions`, or choose without measuring "
            "(`dial.questions: 0`)."
        )
    return [q for q in read_task_file(task_file(run.recipe.label)) if q.key in keys]


def refuse_dial(run: Run) -> None:
    """Refuse a dial of which no member could be made, or none chosen at the end, before anything older is removed."""
    dial = run.recipe.family
    if dial.settings and dial.questions:
        unseen_questions(run)
    if dial.decides:
        check_decidable(run)


@dataclass(frozen=True)
class Standing:
    """Where the members stand, and Long.

    Attributes:
        questions: How many they stand on.
        measured: Whether the members answered them, or only both parents did.
        long: Accuracy and mean tokens of Long.
        members: Accuracy, tokens, share of long answers and intervals of each.
    """

    questions: int
    measured: bool
    long: dict[str, float]
    members: list[dict[str, Any]]


def choose_member(run: Run, members: Mapping[Setting, Fitted]) -> Setting:
    """Write the frontier of the family, measured or by the parents' answers, and say which member is taken."""
    from rpam_lite.report.plots import plot_dial

    dial, folder = run.recipe.family, run.of("fit")
    if dial.questions:
        found = _measured(run, {setting: fitted for setting, (fitted, _) in members.items()})
    else:
        found = _by_parents(run, [log["decision"] for _, log in members.values()])
    rows = [
        {"kind": s.kind, "value": s.value, "name": s.name, "label": s.label, **figures}
        for s, figures in zip(members, found.members, strict=True)
    ]
    choice, wish = _wished(dial, rows, found.long["accuracy"], found.long["tokens"])
    taken, setting = rows[choice.index], list(members)[choice.index]
    told = {"version": 2, **asdict(found), "members": rows, "wish": wish, **asdict(choice)}
    write_json(run.folder / FRONTIER, told)
    plot_dial(told, folder / "frontier.png")
    where = (
        f"on {found.questions} unseen calibration questions"
        if found.measured
        else f"by the parents' answers to {found.questions} calibration questions, its row not fitted on the one asked"
    )
    run.say(
        f"dial: of {len(rows)} member{'s' if len(rows) > 1 else ''} {setting.name} is taken ({wish}): "
        f"{100 * taken['accuracy']:.1f} % at "
        f"{taken['tokens']:.1f} tokens {where}; Long has {100 * found.long['accuracy']:.1f} % at "
        f"{found.long['tokens']:.1f}"
    )
    if not choice.met:
        run.say(f"WARNING: no member does what is wished; the nearest is taken. {_advice(dial)}")
    return setting


def _advice(dial: Dial) -> str:
    if dial.by == "fit":
        return "Add other prices."
    return "Add a smaller budget." if dial.max_tokens_share is not None else "Add fewer points, or a larger budget."


def _measured(run: Run, members: Mapping[Setting, Coefficients]) -> Standing:
    """Measure Long and every member greedily in llama.cpp on the questions that were set aside."""
    from quant.measures import by_question, measure
    from quant.summary import summarize

    folder, questions = run.of("fit"), unseen_questions(run)
    long_row = Row("Long", "parent", 1.0, parent_gguf(run, "long"))
    member_rows = [member_row(run, setting, coefficients, folder) for setting, coefficients in members.items()]
    long, *answers = _records(run, [long_row, *member_rows], _asking(run, questions))
    rows = []
    for records in answers:
        found = measure(by_question(records), seed=run.recipe.seed)
        summary = summarize(records, run.recipe.eval.long_think_tokens)
        rows.append(
            {
                "accuracy": summary.accuracy,
                "tokens": summary.tokens,
                "long": summary.long,
                "intervals": {name: [found[name].low, found[name].high] for name in ("pass@1", "tokens")},
            }
        )
    target = summarize(long, run.recipe.eval.long_think_tokens)
    return Standing(len(questions), True, {"accuracy": target.accuracy, "tokens": target.tokens}, rows)


def _by_parents(run: Run, decisions: Sequence[Mapping[str, Any]]) -> Standing:
    """What the rows would do if the merge answered as the parent does that they choose."""
    from rpam_lite.patterns.price import with_estimates

    rows = with_estimates(seen_rows(run))
    right, tokens = by_parents(rows, ["long"] * len(rows))
    members = [{"long": d["thinks"], **{key: d[key] for key in ("accuracy", "tokens", "intervals")}} for d in decisions]
    return Standing(len(rows), False, {"accuracy": float(right.mean()), "tokens": float(tokens.mean())}, members)


def _wished(dial: Dial, rows: list[dict[str, Any]], long_accuracy: float, long_tokens: float) -> tuple[Choice, str]:
    """The member that the recipe wishes for, and the wish in words."""
    from quant.frontier import Choice, cheapest_above, most_accurate_within

    accuracy, tokens = [row["accuracy"] for row in rows], [row["tokens"] for row in rows]
    if (share := dial.max_tokens_share) is not None:
        most = share * long_tokens + 1e-6  # rounding alone breaks no wish
        return most_accurate_within(accuracy, tokens, most), f"at most {100 * share:g} % of Long's tokens"
    if len(rows) == 1 and dial.max_points_below_long is None:
        return Choice(0, True), "the only one"
    points = POINTS_BELOW_LONG if dial.max_points_below_long is None else dial.max_points_below_long
    least = least_accuracy(long_accuracy, points)
    return cheapest_above(accuracy, tokens, least), f"at most {Setting('points', points).label} below Long"


def member_row(run: Run, setting: Setting, coefficients: Coefficients, folder: Path) -> Row:
    """A member of the family as a model to measure; its GGUF file stands in `folder` for so long."""
    recipe, name = run.recipe, setting.name.capitalize()
    file = folder / f"member-{setting.stem}.gguf"
    parents = " ".join(identity(parent) for parent in parent_folders(recipe))
    made_from = json.dumps(
        [parents, coefficients.model_dump(), recipe.merge.dtype, recipe.merge.donor, recipe.export.type]
    )
    return Row(name, "member", None, file, partial(write_coefficients_gguf, run, coefficients, file, name), made_from)


def other_members(run: Run) -> dict[Setting, Coefficients]:
    """The fitted members that were not taken; none without a dial."""
    members = fitted_members(run)
    taken = read_json(run.folder / FRONTIER, "the dial's frontier")["index"] if members else None
    return {setting: found for i, (setting, found) in enumerate(members.items()) if i != taken}


def fitted_members(run: Run) -> dict[Setting, Coefficients]:
    """All members that were fitted, in the order of the frontier; none without a dial."""
    from rpam_lite.fit.coefficients import load

    if not run.recipe.family.settings:
        return {}
    told = read_json(run.folder / FRONTIER, "the dial's frontier")
    settings = [Setting(row["kind"], row["value"]) for row in told["members"]]
    return {setting: load(member_folder(run, setting) / COEFFICIENTS_FILE) for setting in settings}


def member_folder(run: Run, setting: Setting) -> Path:
    """Where a member's coefficients and log are."""
    return run.of("fit") / "members" / setting.stem


def _records(run: Run, rows: list[Row], asking: Asking) -> list[list[Record]]:
    """The rows' records, beside the samples of the labels: a changed fit must find those of Long."""
    from quant.records import RECORD_VERSION

    asked = json.dumps([RECORD_VERSION, run.recipe.eval.max_tokens])
    files = [run.folder / "samples" / f"dial-{row_key(row, asked)}.jsonl" for row in rows]
    found = measure_rows(run, dict(zip(files, rows, strict=True)), asking)
    return [found[file] for file in files]


def _asking(run: Run, questions: list[Question]) -> Asking:
    from quant.asking import make_requests
    from rpam_lite.pipeline.stages import donor_prompts
    from rpam_lite.preflight.questions import grading_of

    prompts, think_open = donor_prompts(run, questions)
    requests = make_requests(questions, prompts, run.recipe.eval.max_tokens)
    return Asking(questions, requests, think_open, grading_of(run.recipe.label, questions))
