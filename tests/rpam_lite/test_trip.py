"""The whole trip on the embedded pair, small: as a user runs it, killed, resumed, changed."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import llama_cpp
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from quant.records import read_records
from rpam_lite.fit.__main__ import Quiet
from rpam_lite.pipeline.stage import Run
from rpam_lite.pipeline.trip import verify_again
from rpam_lite.recipe import load_recipe
from tests.conftest import ROOT
from tests.rpam_lite.command_line import rpam_here

ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "rpam_lite.cli", *arguments]


def rpam(cwd: Path, *arguments: str) -> str:
    result = rpam_here(*arguments, cwd=cwd)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def write_recipe(folder: Path, **changes: dict[str, Any]) -> None:
    """The shipped recipe with fewer questions, samples and steps."""
    recipe = yaml.safe_load((ROOT / "recipes/tiny.yaml").read_text(encoding="utf-8"))
    for parent in recipe["parents"]:
        recipe["parents"][parent] = str(ROOT / "recipes" / recipe["parents"][parent])
    for section, every in (("label", 8), ("eval", 25)):
        lines = (ROOT / "recipes" / recipe[section]["questions"]).read_text(encoding="utf-8").splitlines()
        (folder / f"{section}.jsonl").write_text("\n".join(lines[::every]) + "\n", encoding="utf-8")
        recipe[section]["questions"] = f"{section}.jsonl"
    recipe["threads"] = 1
    recipe["label"]["samples"] = 2
    recipe["capture"]["questions_per_class"] = 8
    recipe["fit"] |= {"steps": 2}
    recipe["eval"]["scalar_curve"] = [0.5]
    recipe.pop("dial")  # one fit, but where a test wants a family
    for section, values in changes.items():
        recipe[section] = recipe.get(section, {}) | values
    (folder / "tiny.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")


def contents(run: Path) -> dict[str, bytes]:
    """Every file of a run but for times, and for places on this machine."""
    # findings: what is free now; the page: how long each stage took.
    timed = ("manifest.json", "started.json", "findings.json", "rpam.log", "recipe.yaml", "report.html")
    files = [f for f in run.rglob("*") if f.is_file() and f.name not in timed]
    return {str(f.relative_to(run)): re.sub(rb'"seconds": [-+.e0-9]+', b"", f.read_bytes()) for f in files}


@pytest.fixture(scope="module")
def trip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trip")
    write_recipe(folder)
    rpam(folder, "run", "tiny.yaml")
    return folder


def test_every_promised_file_is_there(trip: Path) -> None:
    run = trip / "runs/tiny"
    for name in (
        "label/patterns.jsonl",
        "fit/coefficients.json",
        "fit/coefficients.png",
        "merge/tiny/model.safetensors",
        "export/tiny-f16.gguf",
        "quantize/tiny-q8_0.gguf",
        "quantize/tiny-q4_k_m.gguf",
        "eval/evaluation.json",
        "report/report.html",
        "report/report.md",
        "quantize/README.md",
        "report/frontier.png",
    ):
        assert (run / name).stat().st_size > 0, name
    assert not list(run.rglob("*.part*"))


def test_the_patterns_keep_every_count(trip: Path) -> None:
    rows = [json.loads(line) for line in (trip / "runs/tiny/label/patterns.jsonl").read_text().splitlines()]
    assert len(rows) == 32
    assert {row["label"] for row in rows} >= {"long", "short"}
    for row in rows:
        better = row["correct_long"] > row["correct_short"]
        none = row["correct_long"] == row["correct_short"] == 0
        assert row["label"] == (None if none else "long" if better else "short")


def test_the_merge_loads_in_transformers_and_agrees_with_llama_cpp(trip: Path) -> None:
    folder = trip / "runs/tiny/merge/tiny"
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float16"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    questions = [json.loads(line) for line in (trip / "eval.jsonl").read_text().splitlines()]
    evaluation = json.loads((trip / "runs/tiny/eval/evaluation.json").read_text())
    file = next(row["records"] for row in evaluation["rows"] if row["name"] == "Merge f16")
    records = read_records(trip / "runs/tiny/eval" / file)
    for number, question in enumerate(questions[:4], 1):
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": question["question"]}], add_generation_prompt=True, return_tensors="pt"
        )
        out = model.generate(**prompt, max_new_tokens=320, do_sample=False)
        text = tokenizer.decode(out[0, prompt["input_ids"].shape[1] :]).removesuffix("<|im_end|>")
        assert text == records[f"{number}/0"].text


def test_the_quantized_file_answers_in_plain_llama_cpp(trip: Path) -> None:
    model = llama_cpp.Llama(str(trip / "runs/tiny/quantize/tiny-q4_k_m.gguf"), n_ctx=512, verbose=False, n_threads=1)
    messages: Any = [{"role": "user", "content": "What is 3 + 4?"}]
    answer: Any = model.create_chat_completion(messages, temperature=0, max_tokens=320)
    assert "\\boxed{" in answer["choices"][0]["message"]["content"]
    assert answer["choices"][0]["finish_reason"] == "stop"


def test_the_report_tells_what_was_measured(trip: Path) -> None:
    report = (trip / "runs/tiny/report/report.md").read_text(encoding="utf-8")
    for row in json.loads((trip / "runs/tiny/eval/evaluation.json").read_text())["rows"]:
        _, low, high = row["intervals"]["pass@1"]
        assert low <= row["accuracy"] <= high
        assert f"| {row['name']} | {100 * row['accuracy']:.1f} % | {100 * low:.1f} to {100 * high:.1f} |" in report
    assert "the scalar curve has" in report
    assert "a coin tossed between both parents" in report
    assert "| model | no block | tokens | closed | tokens | never closed | tokens |" in report


def test_a_second_run_reuses_everything(trip: Path) -> None:
    before = contents(trip / "runs/tiny")
    output = rpam(trip, "run", "tiny.yaml")
    assert "check, label, capture, fit, merge, export, imatrix, quantize, divergence, eval, report" in output
    assert "] done" not in output
    assert contents(trip / "runs/tiny") == before


def test_the_cards_are_completed_by_the_report(trip: Path, tmp_path: Path) -> None:
    shutil.copytree(trip, tmp_path / "copy")
    card = tmp_path / "copy/runs/tiny/merge/tiny/README.md"
    whole = card.read_text(encoding="utf-8")
    assert "What was measured" in whole
    # A merge made again knows nothing of measurements: the next run completes its card, and does nothing else.
    rpam(tmp_path / "copy", "merge", "tiny.yaml")
    assert "What was measured" not in card.read_text(encoding="utf-8")
    output = rpam(tmp_path / "copy", "run", "tiny.yaml")
    assert re.findall(r"\[(\w+)\] done", output) == ["report"]
    assert card.read_text(encoding="utf-8") == whole


def test_the_page_is_told_and_opened(trip: Path, tmp_path: Path) -> None:
    shutil.copytree(trip, tmp_path / "copy")
    told = tmp_path / "told"
    told.write_text(f"#!{sys.executable}\nimport sys; open({str(told) + '.txt'!r}, 'w').write(sys.argv[1])\n")
    told.chmod(0o755)
    result = subprocess.run(
        command("report", "tiny.yaml", "--open"),
        cwd=tmp_path / "copy",
        env=ENVIRONMENT | {"BROWSER": str(told)},
        capture_output=True,
        text=True,
        check=True,
    )
    page = tmp_path / "copy/runs/tiny/report/report.html"
    assert "report: runs/tiny/report/report.html" in result.stdout
    deadline = time.monotonic() + 20
    while not Path(f"{told}.txt").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert Path(f"{told}.txt").read_text() == page.as_uri()


def start(folder: Path, stage: str) -> subprocess.Popen[bytes]:
    """Start a run and return when `stage` has begun."""
    process = subprocess.Popen(
        command("run", "tiny.yaml"), cwd=folder, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    while not (folder / "runs/tiny" / stage / "started.json").exists():
        if (folder / "runs/tiny" / stage / "manifest.json").exists() or process.poll() is not None:
            break
        time.sleep(0.01)
    return process


def test_killed_in_five_stages_and_started_again_it_ends_in_the_same_bytes(trip: Path, tmp_path: Path) -> None:
    write_recipe(tmp_path)
    killed = []
    for number, stage in enumerate(("label", "capture", "fit", "merge", "eval")):
        process = start(tmp_path, stage)
        time.sleep(0.2 * (number % 3))
        process.kill()
        process.communicate()
        if not (tmp_path / "runs/tiny" / stage / "manifest.json").exists():
            killed.append(stage)
    assert {"label", "fit", "eval"} & set(killed), "no stage was caught at work"
    rpam(tmp_path, "run", "tiny.yaml")
    assert contents(tmp_path / "runs/tiny") == contents(trip / "runs/tiny")
    assert not list(tmp_path.rglob("*.part*"))


def test_an_interrupt_says_how_to_go_on(tmp_path: Path) -> None:
    write_recipe(tmp_path)
    process = start(tmp_path, "label")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"interrupted; run the same command again to go on" in errors
    assert b"Traceback" not in errors


def test_a_changed_fit_measures_only_the_merge_again(trip: Path, tmp_path: Path) -> None:
    shutil.copytree(trip, tmp_path / "copy")
    write_recipe(tmp_path / "copy", fit={"steps": 1})
    output = rpam(tmp_path / "copy", "run", "tiny.yaml")
    assert "reused from runs/tiny: label, capture" in output
    assert "3 of 6 models are measured already" in output
    assert "measuring Merge f16" in output
    assert "measuring Long" not in output


def test_the_release_preset_goes_all_the_way(trip: Path, tmp_path: Path) -> None:
    shutil.copytree(trip, tmp_path / "copy")
    write_recipe(tmp_path / "copy", fit={"preset": "release", "release": {"prompt_tokens": 64, "epochs": 1}})
    output = rpam(tmp_path / "copy", "run", "tiny.yaml")
    run = tmp_path / "copy" / "runs/tiny"
    short, long = (load_file(ROOT / f"recipes/tiny/{p}/model.safetensors") for p in ("short", "long"))
    name = "model.layers.3.mlp.up_proj.weight"
    weight = load_file(run / "fit/elements/layer-003.safetensors")[name]
    assert weight.std() > 1e-4
    expected = short[name].float() + weight * (long[name].float() - short[name].float())
    assert torch.equal(load_file(run / "merge/tiny/model.safetensors")[name], expected.half())
    fitted = json.loads((run / "fit/coefficients.json").read_text())
    assert fitted["granularity"] == "element"
    assert fitted["values"]["layers.3.mlp.up_proj"] == pytest.approx(float(weight.mean()), abs=1e-6)
    count = (
        sum(t.numel() for t in short.values())
        - short["model.embed_tokens.weight"].numel()
        - len(short["model.norm.weight"])
    )
    assert f"{count} coefficients" in output
    assert "not read under this preset: `fit.granularity`" in output


def refused_budget(folder: Path) -> str:
    """What is said of a budget that Short alone breaks."""
    result = rpam_here("fit", "tiny.yaml", "--budget", "0.01", cwd=folder)
    assert result.returncode == 1
    return result.stderr.splitlines()[-1]


def test_a_family_by_decision_rows(trip: Path, tmp_path: Path) -> None:
    shutil.copytree(trip, tmp_path / "copy")
    output = rpam(
        tmp_path / "copy", "fit", "tiny.yaml", "--price", "9000", "--budget", "1,0.5", "--max-tokens-share", "0.6"
    )
    fit = tmp_path / "copy/runs/tiny/fit"
    told = json.loads((fit / "frontier.json").read_text())
    assert [m["name"] for m in told["members"]] == ["price 9000", "budget 100 %", "budget 50 %"]
    assert told["questions"] == 8  # of 32, four a level: one of each is set aside
    assert "at most 60 % of Long's tokens" in output
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
    write_recipe(tmp_path / "copy", dial={"prices": [9000], "budgets": [1, 0.5], "max_tokens_share": 0.6})
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
    assert refused_budget(tmp_path / "copy").startswith("rpam: [E12] `dial.budgets` 0.01: Short's own answers have")
    assert (fit / "manifest.json").exists()  # the fit that was there is there
    write_recipe(tmp_path / "copy", capture={"questions_per_class": 4}, dial={"budgets": [0.5]})
    assert refused_budget(tmp_path / "copy").startswith("rpam: [E12] `dial.budgets` 0.01")
    assert (fit.parent / "capture/manifest.json").exists()  # and so is the capture


def test_a_family_chosen_by_the_parents_answers(trip: Path, tmp_path: Path) -> None:
    shutil.copytree(trip, tmp_path / "copy")
    write_recipe(tmp_path / "copy", dial={"budgets": [1, 0.5], "questions": 0, "max_tokens_share": 0.6})
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
    assert "budget 50 % is taken (at most 60 % of Long's tokens)" in output
    assert "by the parents' answers to 32 calibration questions" in output


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


def test_another_method_needs_no_fit_and_records_itself(trip: Path, tmp_path: Path) -> None:
    shutil.copytree(trip, tmp_path / "copy")
    write_recipe(tmp_path / "copy", merge={"method": "ties", "options": {"density": 0.3}})
    output = rpam(tmp_path / "copy", "merge", "tiny.yaml")
    assert "verified: " in output
    run = tmp_path / "copy" / "runs/tiny"
    origin = json.loads((run / "merge/tiny/config.json").read_text())["rpam_lite"]
    assert (origin["method"], origin["options"]) == ("ties", {"density": 0.3})
    assert origin["long"]["sha256"] != origin["short"]["sha256"]
    card = (run / "merge/tiny/README.md").read_text()
    assert "merge" in yaml.safe_load(card.split("---")[1])["tags"]
    assert "base_model lacks long and short" in card
    assert "| method | ties with density 0.3 |" in card
    before = (run / "merge/tiny/model.safetensors").read_bytes()
    verify_again(Run(load_recipe(tmp_path / "copy" / "tiny.yaml"), run, Quiet(), print))
    assert (run / "merge/tiny/model.safetensors").read_bytes() == before


def test_a_method_that_measures_first(trip: Path, tmp_path: Path) -> None:
    shutil.copytree(trip, tmp_path / "copy")
    write_recipe(tmp_path / "copy", merge={"method": "acm", "options": {"temperature": 0.5}})
    run = tmp_path / "copy" / "runs/tiny"
    assert "acm: measured for" in rpam(tmp_path / "copy", "statistics", "tiny.yaml")
    assert "verified: " in rpam(tmp_path / "copy", "merge", "tiny.yaml")
    measured = load_file(run / "statistics/statistics.safetensors")
    name = "model.layers.3.mlp.up_proj.weight"
    parents = [load_file(ROOT / f"recipes/tiny/{p}/model.safetensors")[name].float() for p in ("base", "long", "short")]
    expected = parents[0] + sum(w * (p - parents[0]) for w, p in zip(measured[name], parents[1:], strict=True))
    assert torch.equal(load_file(run / "merge/tiny/model.safetensors")[name], expected.half())
    assert "statistics" in json.loads((run / "merge/tiny/config.json").read_text())["rpam_lite"]
    assert not list((run / "statistics").rglob("scratch"))


def test_a_damaged_file_is_made_again(trip: Path, tmp_path: Path) -> None:
    shutil.copytree(trip, tmp_path / "copy")
    run = tmp_path / "copy" / "runs/tiny"
    before = contents(run)
    damaged = run / "quantize/tiny-q8_0.gguf"
    damaged.write_bytes(damaged.read_bytes()[:1000])
    output = rpam(tmp_path / "copy", "run", "tiny.yaml")
    assert "[quantize] done" in output
    assert "[fit]" not in output
    assert contents(run) == before


def test_two_processes_fit_what_one_fits(trip: Path, tmp_path: Path) -> None:
    shutil.copytree(trip, tmp_path / "copy")
    file = tmp_path / "copy" / "runs/tiny/fit/coefficients.json"
    alone = json.loads(file.read_text())["values"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    result = subprocess.run(
        [*launcher, "-m", "rpam_lite.fit", "tiny.yaml"],
        cwd=tmp_path / "copy",
        env=ENVIRONMENT | {"OMP_WAIT_POLICY": "PASSIVE"},  # four threads on two cores would spin
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    together = json.loads(file.read_text())["values"]
    assert together.keys() == alone.keys()
    assert max(abs(together[group] - alone[group]) for group in alone) < 1e-6
    assert any(abs(value - 0.5) > 0.01 for value in together.values())
    assert "fit" in rpam(tmp_path / "copy", "run", "tiny.yaml").split("reused from")[1].split("\n")[0]
