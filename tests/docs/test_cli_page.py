"""Every command has help with an example and a panel, stands in docs/cli.md, and the shell completes recipes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.core import TyperCommand, TyperGroup
from typer.testing import CliRunner

from rpam_lite.cli import app
from rpam_lite.cli.complete import recipes_and_runs, run_folders
from rpam_lite.cli.panels import EXIT_CODES, PANELS
from rpam_lite.recipe import shipped_folder
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")


def commands(group: object, path: str = "") -> Iterator[tuple[str, TyperCommand]]:
    """Every command with its words, those of groups too."""
    assert isinstance(group, TyperGroup)
    for name, command in group.commands.items():
        if isinstance(command, TyperGroup):
            yield from commands(command, f"{path}{name} ")
        else:
            assert isinstance(command, TyperCommand)
            yield f"{path}{name}", command


COMMANDS = dict(commands(typer.main.get_command(app)))


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_a_worked_example(name: str) -> None:
    found = re.search(r"Example: (rpam .+)", COMMANDS[name].help or "")
    assert found, f"rpam {name}"
    assert found[1].startswith(f"rpam {name}")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_stands_on_the_page(name: str) -> None:
    assert re.search(rf"^\| `rpam {name}[ `]", PAGE, re.MULTILINE), f"docs/cli.md lists no `rpam {name} ...`"


def test_help_shows_panels_in_order_and_exit_codes() -> None:
    output = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"}).output
    places = [output.index(f" {panel} ") for panel in PANELS]
    assert places == sorted(places)
    known = {name for names in PANELS.values() for name in names}
    assert {name.split()[0] for name in COMMANDS} <= known
    for code, what in EXIT_CODES.items():
        assert f"{code} {what}" in output
        assert re.search(rf"^\| {code} \|", PAGE, re.MULTILINE)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a recipe below it, a run folder, and another folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("pairs/mine.yaml", "runs/tiny/recipe.yaml", "runs/tiny/rpam.log", "other/recipe.yaml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def test_recipes_and_runs_are_completed(here: Path) -> None:
    shipped = sorted(file.stem for file in shipped_folder().glob("*.yaml"))
    assert recipes_and_runs("") == [*shipped, "other/recipe.yaml", "pairs/mine.yaml", "runs/tiny"]
    assert recipes_and_runs("pairs/m") == ["pairs/mine.yaml"]
    assert recipes_and_runs(f"{here}/pairs/") == [f"{here}/pairs/mine.yaml"]
    assert run_folders("runs/") == run_folders("ru") == ["runs/tiny"]
    assert run_folders("runs/[") == []


def test_the_shell_is_told(here: Path) -> None:
    start = "import sys; sys.argv = ['rpam']; from rpam_lite.cli import main; main()"
    words = {"_RPAM_COMPLETE": "complete_bash", "COMP_WORDS": "rpam status ru", "COMP_CWORD": "2"}
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | words
    told = subprocess.run([sys.executable, "-c", start], env=environment, capture_output=True, text=True, check=False)
    assert told.stdout.split() == ["runs/tiny"]
