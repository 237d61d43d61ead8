"""Families of merges on the embedded pair, small: by decision rows, by the parents' answers, by fits."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rpam_lite.fit import firmness
from rpam_lite.fit.firmness import firm_row
from tests.rpam_lite.command_line import rpam_here
from tests.rpam_lite.tiny_trip import contents, fit_in_two_processes, rpam, write_recipe


def refused_budget(folder: Path) -> str:
    """What is said of a budget that Short alone breaks."""
    result = rpam_here("fit", "tiny.yaml", "--budget", "0.01", cwd=folder)
    assert result.returncode == 1
    return result.stderr.splitlines()[-1]


def test_a_family_by_decision_rows(trip: Path, tmp_path: Path) -> None:
    shutil.copytree(trip, tmp_path / "copy")
    output = rpam(
        tmp_path / "copy", "fit", "tiny.yaml", "--price", "9000", "--budget", "1,0.5", "--max-tokens-share", "0.5"
    )
    fit = tmp_path / "copy/runs/tiny/fit"
    told = json.loads((fit / "frontier.json").read_text())
    assert [m["name"] for m in told["members"]] == ["price 9000", "budget 100 %", "budget 50 %"]
    assert told["questions"] == 8  # of 32, four a level: one of each is set aside
    assert "at most 50 % of Long's tokens" in output
    stems = ["price-9000", "budget-1", "budget-0.5"]
    kept = [json.loads((fit / f"members/{stem}/coefficients.json").read_text()) for stem in stems]
    assert json.loads((fit / "coefficients.json").read_text()) == kept[told["index"]]
    # One fit of lambda; the rows differ, and with them who thinks.
    assert kept[0]["values"] == kept[1]["values"] == kept[2]["values"]
    dear, free, half = told["members"]
    assert (dear["long"], free["long"]) == (0.0, 1.0)
    assert half["tokens"] < 0.8 * free["tokens"]
    log = json.loads((fit / "members/budget-0.5/fit.json").read_text())["decision"]
    assert (log["token"], log["questions"]) == (kept[2]["decision"]["token"], 24)
    # The same dial in the recipe goes on from there, and measures the other members beside the merge.
    write_recipe(tmp_path / "copy", dial={"prices": [9000], "budgets": [1, 0.5], "max_tokens_share": 0.5})
    assert "reused from runs/tiny: check, label, capture, fit" in rpam(tmp_path / "copy", "run", "tiny.yaml")
    evaluation = json.loads((tmp_path / "copy/runs/tiny/eval/evaluation.json").read_text())["rows"]
    members = [row for row in evaluation if row["kind"] == "member"]
    names = ["Price 9000", "Budget 100 %", "Budget 50 %"]
    assert [row["name"] for row in members] == [n for i, n in enumerate(names) if i != told["index"]]
    assert all({"gain", "low", "high"} <= row["over_curve"].keys() & row["over_coin"].keys() for row in members)
    # The merge's head is a tensor of its own now, in every file; two forms have no place for it.
    merged = load_file(tmp_path / "copy/runs/tiny/merge/tiny/model.safetensors")
    row = torch.tensor(kept[told["index"]]["decision"]["row"])
    head, embedding = merged["lm_head.weight"][log["token"]], merged["model.embed_tokens.weight"][log["token"]]
    assert head.float() - embedding.float() == pytest.approx(row, abs=4e-3)
    for option in (("--mergekit", "m.yaml"), ("--lora", "adapter", "--over", "long")):
        refused = rpam_here("export", "tiny.yaml", *option, cwd=tmp_path / "copy")
        assert refused.returncode == 1
        assert "dial.by: fit" in refused.stderr
    assert refused_budget(tmp_path / "copy").startswith("rpam: [E12] `dial`: budget 1 %: Short's own answers have")
    assert (fit / "manifest.json").exists()  # the fit that was there is there
    write_recipe(tmp_path / "copy", capture={"questions_per_class": 4}, dial={"budgets": [0.5]})
    assert refused_budget(tmp_path / "copy").startswith("rpam: [E12] `dial`: budget 1 %")
    assert (fit.parent / "capture/manifest.json").exists()  # and so is the capture


def test_a_family_chosen_by_the_parents_answers(trip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(trip, tmp_path / "copy")
    write_recipe(tmp_path / "copy", dial={"budgets": [1], "questions": 0, "max_tokens_share": 0.5})
    rpam(tmp_path / "copy", "capture", "tiny.yaml")
    output = rpam(tmp_path / "copy", "fit", "tiny.yaml")
    assert "measuring" not in output  # nobody answers anything
    folder = tmp_path / "copy/runs/tiny"
    told = json.loads((folder / "fit/frontier.json").read_text())
    assert (told["measured"], told["questions"]) == (False, 32)  # none set aside
    rows = [json.loads(line) for line in (folder / "label/patterns.jsonl").read_text().splitlines()]
    means = {parent: sum(row[f"tokens_{parent}"] for row in rows) / len(rows) for parent in ("long", "short")}
    free, half = told["members"]
    assert told["long"]["tokens"] == pytest.approx(means["long"])
    assert (free["long"], free["tokens"]) == (1.0, pytest.approx(means["long"]))
    assert free["accuracy"] == told["long"]["accuracy"]
    assert 0 < half["long"] < 1
    assert means["short"] < half["tokens"] <= 0.5 * means["long"]
    assert half["intervals"]["tokens"][0] < half["tokens"] < half["intervals"]["tokens"][1]
    assert (told["index"], told["met"]) == (1, True)
    assert "budget 50 % is taken (at most 50 % of Long's tokens)" in output
    assert "by the parents' answers to 32 calibration questions" in output
    # Another budget needs no other fit, and ends with the same bytes as one that was fitted anew.
    again = rpam(tmp_path / "copy", "fit", "tiny.yaml", "--budget", "0.7")
    kept = next((folder / "fits").iterdir())
    assert f"lambda is fitted already (remove runs/tiny/fits/{kept.name} to fit it again)" in again
    assert "budget 70 % is taken (the only one)" in again
    assert 'write `dial: {"budgets": [0.7], "questions": 0}` into the recipe, and `rpam run` it' in again
    assert "fitting all lambdas" not in again
    quick = contents(folder / "fit")
    # A wish alone makes the one merge that does it.
    wished = rpam(tmp_path / "copy", "fit", "tiny.yaml", "--max-points-below-long", "10")
    assert "within 10 points is taken (at most 10 points below Long)" in wished
    assert "WARNING" not in wished
    (member,) = (told := json.loads((folder / "fit/frontier.json").read_text()))["members"]
    assert told["met"]
    assert told["long"]["accuracy"] - 0.1 - 1e-9 <= member["accuracy"] < told["long"]["accuracy"]
    assert member["tokens"] < told["long"]["tokens"]
    rpam(tmp_path / "copy", "fit", "tiny.yaml", "--budget", "0.7")
    # A damaged file is made again, and so is all.
    (kept / "states.safetensors").write_bytes(b"half")
    assert "the merge is run over the questions again" in rpam(tmp_path / "copy", "fit", "tiny.yaml", "--budget", "0.7")
    assert contents(folder / "fit") == quick
    shutil.rmtree(folder / "fits")
    assert "fitting all lambdas" in rpam(tmp_path / "copy", "fit", "tiny.yaml", "--budget", "0.5")
    rpam(tmp_path / "copy", "fit", "tiny.yaml", "--budget", "0.7")
    assert contents(folder / "fit") == quick
    # A row that can't be quiet within answers is told of.
    loud = lambda states, row: replace(firm_row(states, row), loudest=0.0)  # noqa: E731
    monkeypatch.setattr(firmness, "firm_row", loud)
    told = rpam(tmp_path / "copy", "fit", "tiny.yaml", "--budget", "0.7")
    assert "WARNING: budget 70 %: within an answer the think token has a probability of up to 50 %" in told
    # Other questions to fit on are another fit.
    write_recipe(
        tmp_path / "copy", capture={"questions_per_class": 4}, dial={"budgets": [0.7], "questions": 0}, fit={"steps": 2}
    )
    rpam(tmp_path / "copy", "capture", "tiny.yaml")
    assert "lambda is fitted already" not in rpam(tmp_path / "copy", "fit", "tiny.yaml")


def test_two_processes_keep_a_fit_and_read_it(trip: Path, tmp_path: Path) -> None:
    shutil.copytree(trip, tmp_path / "copy")
    write_recipe(tmp_path / "copy", dial={"questions": 0, "budgets": [0.5]})
    rpam(tmp_path / "copy", "capture", "tiny.yaml")
    assert "lambda is fitted already" not in fit_in_two_processes(tmp_path / "copy")
    folder = tmp_path / "copy/runs/tiny/fit"
    found = contents(folder)
    shutil.rmtree(folder)
    assert fit_in_two_processes(tmp_path / "copy").count("lambda is fitted already") == 1
    assert contents(folder) == found


def test_a_family_of_fits(trip: Path, tmp_path: Path) -> None:
    shutil.copytree(trip, tmp_path / "copy")
    write_recipe(tmp_path / "copy", dial={"by": "fit", "prices": [0, 3000], "max_tokens_share": 0.3})
    rpam(tmp_path / "copy", "capture", "tiny.yaml")
    output = rpam(tmp_path / "copy", "fit", "tiny.yaml")
    fit = tmp_path / "copy/runs/tiny/fit"
    told = json.loads((fit / "frontier.json").read_text())
    assert [m["name"] for m in told["members"]] == ["price 0", "price 3000"]
    taken = told["members"][told["index"]]["value"]
    assert f"price {taken:g} is taken" in output
    kept = {m: json.loads((fit / f"members/price-{m}/coefficients.json").read_text()) for m in (0, 3000)}
    assert json.loads((fit / "coefficients.json").read_text()) == kept[taken]
    # Where tokens are dear every trace is Short's, where they are free none of those is that Short does as well.
    assert sum(kept[0]["values"].values()) > sum(kept[3000]["values"].values())
    assert (fit / "frontier.png").stat().st_size > 0
    assert not list(fit.glob("*.gguf"))
