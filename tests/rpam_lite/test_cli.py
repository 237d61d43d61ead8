"""The command line, as a user meets it: help, and one sentence for every mistake."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from rpam_lite import __version__
from rpam_lite.checkpoint.files import locked
from rpam_lite.cli import app
from rpam_lite.errors import EXTRA_OF, RpamError, missing_package
from rpam_lite.fit.__main__ import fit
from rpam_lite.pipeline.trip import STAGES
from rpam_lite.terminal import interrupts_kept
from tests.conftest import ROOT
from tests.rpam_lite.command_line import rpam_here


def rpam(*arguments: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200", **variables}
    command = [sys.executable, "-m", "rpam_lite.cli", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def refused(result: subprocess.CompletedProcess[str], *parts: str) -> None:
    output = result.stdout + result.stderr
    assert result.returncode not in (0, None), output
    assert "Traceback" not in output
    for part in parts:
        assert part in output


def recipe(tmp_path: Path, pair: Path, **changes: object) -> str:
    value = {
        "version": 1,
        "name": "mine",
        "parents": {"long": str(pair / "long"), "short": str(pair / "short")},
        "label": {"questions": str(ROOT / "recipes/tiny/calibration.jsonl"), "max_tokens": 64},
        "eval": {"questions": str(ROOT / "recipes/tiny/evaluation.jsonl"), "max_tokens": 64},
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(value | changes), encoding="utf-8")
    return "mine.yaml"


def test_help_lists_every_stage(tmp_path: Path) -> None:
    result = rpam("--help", cwd=tmp_path)
    assert result.returncode == 0
    assert all(name in result.stdout for name in (*STAGES, "run"))
    assert "recipes/tiny.yaml" in rpam("fit", "--help", cwd=tmp_path).stdout
    assert rpam("--version", cwd=tmp_path).stdout.strip() == __version__


def test_a_console_without_all_characters_gets_others_for_them(tmp_path: Path) -> None:
    result = rpam("plan", "tiny", cwd=tmp_path, PYTHONIOENCODING="ascii")
    assert result.returncode == 0, result.stderr
    assert "12 GB" in result.stdout


def test_a_good_pair_passes_the_check(tmp_path: Path, pair: Path) -> None:
    result = rpam_here("check", recipe(tmp_path, pair), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "0 errors, 3 findings" in result.stdout
    assert not (tmp_path / "runs").exists()
    told = rpam_here("check", "mine.yaml", "--json", cwd=tmp_path)
    assert json.loads(told.stdout)["worst"] == "INFO"


def test_wrong_arguments_and_recipes(tmp_path: Path, pair: Path) -> None:
    refused(rpam("run", "none.yaml", cwd=tmp_path), "none.yaml: no such recipe file")
    wrong = rpam("runn", cwd=tmp_path)
    refused(wrong, "No such command 'runn'")
    assert wrong.returncode == 2
    assert "unexpected" not in wrong.stdout + wrong.stderr
    file = recipe(tmp_path, pair, fitt={"steps": 3})
    refused(rpam("run", file, cwd=tmp_path), "mine.yaml: unknown key `fitt` (did you mean `fit`?).")
    assert not (tmp_path / "runs").exists()


def test_a_wrong_pair_stops_at_the_check(tmp_path: Path, pair: Path) -> None:
    weights = pair / "short" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    result = rpam_here("run", recipe(tmp_path, pair), cwd=tmp_path)
    refused(result, "ERROR [checkpoint]", "is no whole safetensors file", "1 of 2 findings above are errors")
    assert not (tmp_path / "runs/mine/label").exists()


def test_a_stage_without_its_files_names_the_one_to_run(tmp_path: Path, pair: Path) -> None:
    refused(rpam_here("fit", recipe(tmp_path, pair), cwd=tmp_path), "stage 'capture' is not done", "rpam capture")
    file = recipe(tmp_path, pair, quantize={"types": ["Q4_K_X"]})
    refused(rpam_here("label", file, cwd=tmp_path), "ERROR [quantize]", "no type 'Q4_K_X'")


def test_two_processes_do_not_work_in_one_run_folder(tmp_path: Path, pair: Path) -> None:
    file = recipe(tmp_path, pair)
    with locked(tmp_path / "runs/mine/.lock", "mine"):
        refused(rpam_here("capture", file, cwd=tmp_path), "runs/mine: another run works there")
    refused(rpam_here("capture", file, cwd=tmp_path), "stage 'label' is not done")


def test_torchruns_fit_does_not_work_in_a_run_folder_at_work(
    tmp_path: Path, pair: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = recipe(tmp_path, pair)
    monkeypatch.chdir(tmp_path)
    with locked(tmp_path / "runs/mine/.lock", "mine"), pytest.raises(RpamError, match="another run works there"):
        fit(Path(file))


@pytest.mark.parametrize(
    ("command", "options", "said"),
    [
        ("export", ["--mergekit", "m.yaml", "--lora", "a"], "--lora: does nothing together with --mergekit"),
        ("export", ["--direct", "m.gguf", "--rank", "8"], "--rank: does nothing together with --direct"),
        ("export", ["--type", "F32"], "--type: does nothing together with the export"),
        ("quantize", ["--context", "99"], "--context: does nothing together with the recipe's types"),
    ],
)
def test_options_that_would_do_nothing_are_refused(
    command: str, options: list[str], said: str, tmp_path: Path, pair: Path
) -> None:
    refused(rpam_here(command, recipe(tmp_path, pair), *options, cwd=tmp_path), said)


def test_what_the_dial_cannot_be_asked_for_is_refused(tmp_path: Path, pair: Path) -> None:
    file = recipe(tmp_path, pair)
    refused(rpam_here("fit", file, "--max-points-below-long", "-1", cwd=tmp_path), "Invalid value for '--max-points")
    refused(rpam_here("fit", file, "--price", "cheap", cwd=tmp_path), "--price cheap: must be numbers")
    refused(rpam_here("fit", file, "--budget", "1.5", cwd=tmp_path), "--budget 1.5: ")


def test_a_run_folder_that_cannot_be_written(tmp_path: Path, pair: Path) -> None:
    (tmp_path / "runs").write_text("a file where a folder should be", encoding="utf-8")
    refused(rpam_here("check", recipe(tmp_path, pair), cwd=tmp_path), "runs", "choose another folder with --runs")


@pytest.mark.parametrize(
    "arguments", [("methods",), ("plan", "mine.yaml"), ("plan", "--shape", "qwen2.5-7b", "--host", "1GiB")]
)
def test_json_is_one_document_and_nothing_else(arguments: tuple[str, ...], tmp_path: Path, pair: Path) -> None:
    recipe(tmp_path, pair)
    result = CliRunner().invoke(app, [a.replace("mine", str(tmp_path / "mine")) for a in (*arguments, "--json")])
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["version"] == 1
    if arguments[0] == "methods":
        assert told["methods"][0]["name"] == "rpam"
        assert {"ties", "scalar"} <= {method["name"] for method in told["methods"]}
    else:
        assert [card["card"] for card in told["cards"]] == ["8 GB", "12 GB", "16 GB", "24 GB", "CPU"]
        for card in told["cards"]:
            assert (card["plan"] is None) == bool(card["why"])
        fits = arguments[1] == "mine.yaml"
        assert all((card["plan"] is not None) == fits for card in told["cards"])


def test_a_run_folder_keeps_a_log_and_its_recipe(tmp_path: Path, pair: Path) -> None:
    file = recipe(tmp_path, pair)
    refused(rpam_here("capture", file, cwd=tmp_path), "stage 'label' is not done")
    log = (tmp_path / "runs/mine/rpam.log").read_text(encoding="utf-8")
    assert "rpam capture mine.yaml" in log
    assert "[check] done in" in log
    assert "ERROR [E13] runs/mine/label: stage 'label' is not done" in log
    refused(rpam_here("capture", "runs/mine", cwd=tmp_path), "stage 'label' is not done")
    assert (tmp_path / "runs/mine/rpam.log").read_text(encoding="utf-8").startswith(log)
    assert [f.name for f in (tmp_path / "runs").iterdir()] == ["mine"]


@pytest.mark.parametrize(("package", "extra"), [("torch", "merge"), ("llama_cpp", "gguf"), ("math_verify", "eval")])
def test_a_missing_package_names_the_command_that_installs_it(package: str, extra: str) -> None:
    error = missing_package(ModuleNotFoundError(name=f"{package}.sub"))
    assert error is not None
    assert f"pip install 'rpam_lite[{extra}]'" in str(error)
    assert missing_package(ModuleNotFoundError(name="somewhere_else")) is None


def test_every_package_of_an_extra_is_known_by_the_name_it_is_imported_by() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    imported_as = {"llama_cpp_python": "llama_cpp", "scikit_learn": "sklearn"}
    of_users = {n: lines for n, lines in project["optional-dependencies"].items() if n not in ("dev", "docs", "all")}
    brings = {
        extra: {re.split(r"[\[><=]", line)[0].replace("-", "_") for line in lines if not line.startswith("rpam_lite")}
        for extra, lines in of_users.items()
    }
    packages = {imported_as.get(p, p) for brought in brings.values() for p in brought}
    assert set(EXTRA_OF) == packages
    for package, extra in EXTRA_OF.items():
        assert package in {imported_as.get(p, p) for p in brings[extra]}


def test_an_interrupt_that_was_dropped_is_raised_again() -> None:
    before = signal.getsignal(signal.SIGINT)
    with interrupts_kept() as check:
        check()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            check()
    assert signal.getsignal(signal.SIGINT) is before


def test_device_memory_stands_for_the_recipes(tmp_path: Path, pair: Path) -> None:
    told = rpam_here(
        "plan", "--shape", "qwen2.5-7b", "--host", "32GiB", "--device-memory", "6GiB", "--json", cwd=tmp_path
    )
    cards = json.loads(told.stdout)["cards"]
    assert [card["card"] for card in cards] == ["6.0 GiB", "CPU"]
    assert cards[0]["plan"]["peak"]["device"] <= 6 << 30
    file = recipe(tmp_path, pair)
    refused(rpam_here("capture", file, "--device-memory", "6GiB", cwd=tmp_path), "stage 'label' is not done")
    kept = yaml.safe_load((tmp_path / "runs/mine/recipe.yaml").read_text(encoding="utf-8"))
    assert kept["memory"] == {"device": 6 << 30}
    refused(rpam_here("fit", file, "--device-memory", "much", cwd=tmp_path), "--device-memory much: must be a size")
