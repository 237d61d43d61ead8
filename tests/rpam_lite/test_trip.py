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
from rpam_lite.errors import RpamError
from rpam_lite.pipeline.opening import Silent
from rpam_lite.pipeline.stage import Run
from rpam_lite.pipeline.trip import verify_again
from rpam_lite.recipe import load_recipe
from tests.conftest import ROOT
from tests.rpam_lite.tiny_trip import contents, fit_in_two_processes, rpam, write_recipe

ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "rpam_lite.cli", *arguments]


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
    verify_again(Run(load_recipe(tmp_path / "copy" / "tiny.yaml"), run, Silent(), print))
    assert (run / "merge/tiny/model.safetensors").read_bytes() == before
    damaged = bytearray(before)
    damaged[len(before) // 2] ^= 0x40
    (run / "merge/tiny/model.safetensors").write_bytes(damaged)
    with pytest.raises(RpamError, match="`rpam run` writes it anew: it counts as not done now"):
        verify_again(Run(load_recipe(tmp_path / "copy" / "tiny.yaml"), run, Silent(), print))
    assert "not done" in rpam(tmp_path / "copy", "status", "tiny.yaml")


def test_a_method_that_measures_first(trip: Path, tmp_path: Path) -> None:
    shutil.copytree(trip, tmp_path / "copy")
    write_recipe(tmp_path / "copy", merge={"method": "acm", "options": {"temperature": 0.5}})
    run = tmp_path / "copy" / "runs/tiny"
    rpam(tmp_path / "copy", "capture", "tiny.yaml")  # the fit read no hidden states
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
    fit_in_two_processes(tmp_path / "copy")
    together = json.loads(file.read_text())["values"]
    assert together.keys() == alone.keys()
    assert max(abs(together[group] - alone[group]) for group in alone) < 1e-6
    assert any(abs(value - 0.5) > 0.01 for value in together.values())
    assert "fit" in rpam(tmp_path / "copy", "run", "tiny.yaml").split("reused from")[1].split("\n")[0]
