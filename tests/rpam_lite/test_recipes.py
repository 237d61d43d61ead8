"""`recipes ls | show | cp` and `init`: recipes to begin with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from quant.tasks.benchmarks import MATH_INSTRUCTION
from rpam_lite.cli import app
from rpam_lite.errors import RpamError
from rpam_lite.recipe import load_recipe, shipped_folder


def rpam(*arguments: str | Path, answer: str = "") -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments], input=answer, env={"COLUMNS": "200"})


def refusal(*arguments: str | Path, answer: str = "") -> str:
    result = rpam(*arguments, answer=answer)
    assert isinstance(result.exception, RpamError), result.output
    return str(result.exception)


def test_every_shipped_recipe_is_listed_shown_and_can_be_copied(tmp_path: Path) -> None:
    told = json.loads(rpam("recipes", "ls", "--json").stdout)["recipes"]
    files = sorted(shipped_folder().glob("*.yaml"))
    assert [recipe["name"] for recipe in told] == [file.stem for file in files]
    table = rpam("recipes", "ls").output
    for file, recipe in zip(files, told, strict=True):
        assert file.stem in table
        assert recipe["about"]
        assert rpam("recipes", "show", file.stem).stdout == file.read_text(encoding="utf-8")
        copy = tmp_path / "deep" / f"copy-of-{file.stem}.yaml"
        assert rpam("recipes", "cp", file.stem, copy).exit_code == 0
        original, ours = load_recipe(file), load_recipe(copy)
        assert ours.name == copy.stem
        assert ours.parents == original.parents
        # A question file that is there is found from the copy too; one that is yet to come lies beside it.
        for section in ("label", "eval"):
            before = getattr(original, section).questions
            if not isinstance(before, Path) or before.exists():
                assert getattr(ours, section).questions == before


def test_a_copy_keeps_comments_and_paths_that_still_hold(tmp_path: Path) -> None:
    (tmp_path / "models/long").mkdir(parents=True)
    (tmp_path / "q.jsonl").write_text("", encoding="utf-8")
    text = """# a pair
version: 1
name: one  # its name
parents: {long: models/long, short: "org/short"}  # side by side
label:
  questions: 'q.jsonl'
eval: {questions: later.jsonl}
"""
    (tmp_path / "one.yaml").write_text(text, encoding="utf-8")
    assert rpam("recipes", "cp", tmp_path / "one.yaml", tmp_path / "two.yaml").exit_code == 0
    assert (tmp_path / "two.yaml").read_text() == text.replace("name: one", "name: two")
    assert rpam("recipes", "cp", tmp_path / "one.yaml", tmp_path / "below/three: 3.yaml").exception is not None
    assert list((tmp_path / "below").iterdir()) == []
    assert rpam("recipes", "cp", tmp_path / "one.yaml", tmp_path / "below/four.yaml").exit_code == 0
    copied = (tmp_path / "below/four.yaml").read_text()
    assert f'long: {tmp_path / "models/long"}, short: "org/short"}}  # side by side' in copied
    assert f"questions: {tmp_path / 'q.jsonl'}" in copied
    assert "later.jsonl" in copied
    assert "is there already" in refusal("recipes", "cp", "tiny", tmp_path / "two.yaml")
    assert "no such recipe" in refusal("recipes", "show", "none")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pair: Path) -> Path:
    """A folder to work in, with a pair of checkpoints of context 512 below it."""
    monkeypatch.chdir(tmp_path)
    for name in ("train.jsonl", "test.jsonl"):
        (tmp_path / name).write_text('{"question": "1 + 1?", "answer": "2"}\n', encoding="utf-8")
    return tmp_path


def test_init_writes_what_differs_from_the_defaults(here: Path) -> None:
    options = ("--long", "pair/long", "--short", "pair/short", "--questions", "train.jsonl", "--held-out", "test.jsonl")
    result = rpam("init", "recipes/mine.yaml", *options)
    assert result.exit_code == 0, result.output
    assert "rpam check recipes/mine.yaml" in result.output
    recipe = load_recipe(here / "recipes/mine.yaml")
    assert recipe.parents.long.resolve() == here / "pair/long"
    assert recipe.label.questions.resolve() == here / "train.jsonl"
    assert recipe.label.max_tokens == recipe.eval.max_tokens == 256
    assert recipe.label.instruction == recipe.eval.instruction == MATH_INSTRUCTION
    text = (here / "recipes/mine.yaml").read_text()
    assert yaml.safe_load(text).keys() == {"version", "name", "parents", "label", "dial", "eval"}
    assert "model_type qwen2, hidden_size 64, num_hidden_layers 2" in text
    assert "is there already" in refusal("init", "recipes/mine.yaml", *options)


def test_init_reads_whether_questions_ask_for_a_box_and_prompts_open_a_block(
    here: Path, edit_json: Callable[..., None]
) -> None:
    (here / "train.jsonl").write_text('{"question": "1 + 1? Use \\\\boxed{}.", "answer": "2"}\n', encoding="utf-8")
    (here / "test.jsonl").write_text('{"question": "2?", "answer": "2", "why": "\\\\boxed{2}"}\n', encoding="utf-8")
    edit_json(here / "pair/long/tokenizer_config.json", chat_template="{{ messages[0].content }}<think>\n")
    options = ("--long", "pair/long", "--short", "pair/short", "--questions", "train.jsonl", "--held-out", "test.jsonl")
    assert rpam("init", "mine.yaml", *options).exit_code == 0
    recipe = load_recipe(here / "mine.yaml")
    assert (recipe.label.instruction, recipe.eval.instruction) == ("", MATH_INSTRUCTION)
    assert recipe.merge.think_prefill == "drop"


def test_init_asks_for_what_is_missing(here: Path) -> None:
    result = rpam("init", "mine.yaml", "--long", "org/long@v1", answer="pair/short\n\n\n")
    assert result.exit_code == 0, result.output
    recipe = load_recipe(here / "mine.yaml")
    assert str(recipe.parents.long) == "org/long@v1"
    assert recipe.parents.short == here / "pair/short"
    assert recipe.label.questions == {"gsm8k-train": 300}
    assert recipe.eval.questions == {"gsm8k": 200}
    assert recipe.merge.think_prefill == "drop"  # its template is not known yet
    assert "org/long@v1: is not read yet" in result.output
    later = rpam("init", "later.yaml", "--long", "a/b", "--short", "c/d", answer="train.jsonl\nlater.jsonl\n")
    assert f"{here / 'later.jsonl'}: `eval.questions` is not there yet" in later.output
    assert "label.questions" not in later.output
    assert "--long is missing" in refusal("init", "other.yaml")


def test_init_tells_of_an_adapter_what_it_is_over(here: Path) -> None:
    (here / "lora").mkdir()
    (here / "lora/adapter_config.json").write_text('{"base_model_name_or_path": "acme/base"}', encoding="utf-8")
    options = ("--short", "pair/short", "--questions", "train.jsonl", "--held-out", "test.jsonl")
    result = rpam("init", "mine.yaml", "--long", "lora", *options)
    assert "is an adapter over acme/base; if that is no folder here, name one as `base`" in result.output


def test_init_refuses_what_can_not_be_a_pair(here: Path) -> None:
    config = here / "pair/short/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"hidden_size": 32}), encoding="utf-8")
    options = ("--questions", "train.jsonl", "--held-out", "test.jsonl")
    assert "`hidden_size` is 64 and 32" in refusal(
        "init", "a.yaml", "--long", "pair/long", "--short", "pair/short", *options
    )
    assert "no such checkpoint folder" in refusal("init", "a.yaml", "--long", "x", "--short", "pair/short", *options)
    assert "ends in .yaml" in refusal("init", "a.json", "--long", "pair/long", "--short", "pair/long", *options)
    assert not (here / "a.yaml").exists()


def test_init_wonders_about_models_that_are_the_wrong_way_round(here: Path) -> None:
    for name, template in (("long", "{{ messages }}"), ("short", "{{ messages }}<think>")):
        config = here / "pair" / name / "tokenizer_config.json"
        (here / "pair" / name / "chat_template.jinja").unlink(missing_ok=True)
        told = json.loads(config.read_text()) | {"chat_template": template}
        config.write_text(json.dumps(told), encoding="utf-8")
    answer = "train.jsonl\ntest.jsonl\n"
    wrong = rpam("init", "a.yaml", "--long", "pair/long", "--short", "pair/short", answer=answer)
    right = rpam("init", "b.yaml", "--long", "pair/short", "--short", "pair/long", answer=answer)
    assert "are they the wrong way round?" in wrong.output
    assert "wrong way" not in right.output
