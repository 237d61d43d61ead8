"""Every recipe for a real pair: check, plan and all stages, on its parents shrunk (shrunken.py) and a stand-in hub.

What a recipe says is used as it stands, ids on the hub, template and data sets included; only its numbers of
questions, samples, tokens, steps and threads are shrunk. Where RPAM_TEST_DATA names a folder with real
vocabularies, two of the recipes run with those as well.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import constants
from typer.testing import CliRunner

from bench.recipes import outdated
from rpam_lite.cli import app
from rpam_lite.patterns.price import with_estimates
from rpam_lite.recipe import load_recipe
from tests.conftest import ROOT
from tests.rpam_lite.shrunken import LONG_GOLD, SHORT_GOLD, write_pair
from tests.rpam_lite.test_hub import Hub, go_to

RECIPES = sorted(f.stem for f in (ROOT / "recipes").glob("*.yaml") if f.stem != "tiny")
WITH_VOCABULARY = ("llama-r1-8b", "r1-qwen-1.5b")
STAGES = ("check", "label", "capture", "fit", "merge", "export", "quantize", "divergence", "eval", "report")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data sets with the hub's columns, whose gold answers the shrunken parents give."""
    folder = tmp_path_factory.mktemp("data")
    for name, measured in (("gsm8k_train", False), ("math_train", False), ("gsm8k_test", True), ("math500_test", True)):
        rows = []
        for n in range(12):
            text, gold = f"What of {n + 100 * measured} {name}s?", (LONG_GOLD, SHORT_GOLD)[n % 2]
            rows.append(
                {
                    "gsm8k_train": {"question": text, "answer": f"Thus.\n#### {gold}"},
                    "gsm8k_test": {"question": text, "answer": f"Thus.\n#### {gold}"},
                    "math_train": {"problem": text, "solution": f"\\boxed{{{gold}}}", "level": f"Level {1 + n % 5}"},
                    "math500_test": {"problem": text, "answer": gold, "level": 1 + n % 5, "unique_id": f"t/{n}"},
                }[name]
            )
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return folder


def shrink(name: str, folder: Path) -> Path:
    """The recipe with smaller numbers."""
    recipe: dict[str, Any] = yaml.safe_load((ROOT / f"recipes/{name}.yaml").read_text(encoding="utf-8"))
    recipe |= {"threads": 1, "engine_threads": 1}
    for section, size in (("label", 5), ("eval", 2)):
        recipe[section]["questions"] = dict.fromkeys(recipe[section]["questions"], size)
        recipe[section]["max_tokens"] = 16
    recipe["label"]["samples"] = 2
    recipe["capture"]["questions_per_class"] = 3
    recipe.setdefault("fit", {})["steps"] = 1
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return file


@pytest.fixture
def at_hub(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Puts a pair on a stand-in hub; the data sets lie in RPAM_DATA."""
    monkeypatch.setenv("RPAM_DATA", str(data))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hubs: list[Hub] = []

    def publish(folders: dict[str, Path]) -> None:
        hubs.append(Hub(folders))
        go_to(hubs[0].url, monkeypatch)

    yield publish
    for hub in hubs:
        hub.server.shutdown()


def rpam(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code in (0, 3), result.output
    return result.stdout


def travel(
    name: str, tmp_path: Path, at_hub: Any, tokenizer: Any, vocabularies: Path | None, commands: Sequence[str]
) -> Path:
    """The commands, check and plan before them where the vocabulary is small; the run folder."""
    parents = load_recipe(ROOT / f"recipes/{name}.yaml").parents
    at_hub(write_pair(tmp_path / "models", str(parents.long), str(parents.short), tokenizer, vocabularies))
    recipe, runs = str(shrink(name, tmp_path)), str(tmp_path / "runs")
    if vocabularies is None:
        found = json.loads(rpam("check", recipe, "--runs", runs, "--json"))
        assert found["worst"] != "ERROR"
        assert "a step: arithmetic" in rpam("plan", recipe, "--host", "16GiB")
    for command in commands:
        rpam(command, recipe, "--runs", runs)
    return tmp_path / "runs" / load_recipe(Path(recipe)).name


def assert_labels(run: Path) -> None:
    """Every question is labelled by the parent that gives its gold answer."""
    rows = [json.loads(line) for line in (run / "label/patterns.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {(row["answer"], row["label"]) for row in rows} == {(LONG_GOLD, "long"), (SHORT_GOLD, "short")}


def assert_decision(run: Path) -> None:
    """A row is fitted for the token that begins Long's gold answer; a budget below Short's own tokens is left out."""
    rows = [json.loads(line) for line in (run / "label/patterns.jsonl").read_text(encoding="utf-8").splitlines()]
    filled = with_estimates(rows)
    least = sum(row["tokens_short"] for row in filled) / sum(row["tokens_long"] for row in filled)
    told = json.loads((run / "fit/frontier.json").read_text(encoding="utf-8"))
    assert told["measured"] is False
    budgets = [f"budget {budget} %" for budget in (75, 50) if budget / 100 > least]
    assert [m["name"] for m in told["members"]] == [*budgets, "within 2 points"]
    coefficients = json.loads((run / "fit/coefficients.json").read_text(encoding="utf-8"))
    assert {row["response_long"][0] for row in rows if row["response_long"]} == {coefficients["decision"]["token"]}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_makes_the_whole_trip(name: str, tmp_path: Path, at_hub: Any, tokenizer: Any) -> None:
    run = travel(name, tmp_path, at_hub, tokenizer, None, ["run"])
    assert all((run / stage / "manifest.json").exists() for stage in STAGES)
    assert_labels(run)
    assert_decision(run)
    evaluation = json.loads((run / "eval/evaluation.json").read_text(encoding="utf-8"))
    right = {row["name"]: row["accuracy"] for row in evaluation["rows"]}
    golds = [json.loads(line)["answer"] for line in (run / "questions/evaluation.jsonl").read_text().splitlines()]
    assert right["Long"] == golds.count(LONG_GOLD) / len(golds)
    assert right["Short"] == golds.count(SHORT_GOLD) / len(golds)


@pytest.mark.parametrize("name", WITH_VOCABULARY)
def test_with_the_real_vocabulary(name: str, shared_data: Path, tmp_path: Path, at_hub: Any, tokenizer: Any) -> None:
    """Up to the proven GGUF file: what comes after knows no vocabulary, and each file of this size takes seconds."""
    if not (shared_data / "vocab").is_dir():
        pytest.skip("RPAM_TEST_DATA holds no real vocabularies")
    stages = ["label", "capture", "fit", "merge", "export"]
    run = travel(name, tmp_path, at_hub, tokenizer, shared_data / "vocab", stages)
    assert_labels(run)
    assert_decision(run)
    assert json.loads((run / f"export/{name}-f16.proof.json").read_text(encoding="utf-8"))["values"] > 0


def test_every_header_says_what_the_planner_says_now() -> None:
    assert [file.name for file, _ in outdated()] == [], "run: python -m bench.recipes"


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_named_as_its_file_and_tells_that_it_is_untried(name: str) -> None:
    text = (ROOT / f"recipes/{name}.yaml").read_text(encoding="utf-8")
    assert load_recipe(Path(name)).name == name
    assert "# What `rpam plan recipes/" in text
    assert "Licences: " in text
    assert "# Not run on real weights yet" in text
