"""Every error has a code, and every code a section in docs/troubleshooting.md."""

from __future__ import annotations

import ast
import errno
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from export.ollama import OllamaServer
from quant.tasks.questions import load_questions
from rpam_lite.checkpoint.files import read_json
from rpam_lite.error_codes import CALLER, CODES, code_of, code_of_module
from rpam_lite.errors import RpamError
from rpam_lite.recipe import load_recipe
from rpam_lite.streaming.shapes import config_of_shape
from rpam_lite.terminal import fail_in_one_sentence
from tests.conftest import ROOT


def test_every_code_has_its_section_and_every_section_its_code() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (E\d\d): (.+)$", page, re.MULTILINE) == list(CODES.items())


def modules_that_raise() -> list[str]:
    """Modules of ours that make an RpamError."""
    found = []
    for package in ("rpam_lite", "quant", "export", "bench"):
        for file in (ROOT / package).rglob("*.py"):
            tree = ast.parse(file.read_text(encoding="utf-8"))
            calls = (n.func for n in ast.walk(tree) if isinstance(n, ast.Call))
            if any(isinstance(f, ast.Name) and f.id == "RpamError" for f in calls):
                found.append(".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
    return found


def test_every_module_that_raises_has_a_code() -> None:
    modules = modules_that_raise()
    assert len(modules) > 50
    assert {m for m in modules if code_of_module(m) is None} == set()
    assert {code_of_module(m) for m in modules} - {CALLER} <= CODES.keys()


def test_codes_named_where_they_are_raised_exist() -> None:
    named = re.compile(r'code="(E\d+)"')
    texts = [f.read_text(encoding="utf-8") for p in ("rpam_lite", "quant", "export") for f in (ROOT / p).rglob("*.py")]
    found = {code for text in texts for code in named.findall(text)}
    assert {"E07", "E08"} <= found <= CODES.keys()


def refused(action: Callable[[], object]) -> RpamError:
    with pytest.raises(RpamError) as caught:
        action()
    return caught.value


def test_the_code_is_that_of_the_module_that_raised(tmp_path: Path) -> None:
    assert code_of(refused(lambda: load_recipe(tmp_path / "no.yaml"))) == "E01"
    assert code_of(refused(lambda: config_of_shape("no-such-model"))) == "E02"
    assert code_of(refused(lambda: load_questions(tmp_path / "no.jsonl"))) == "E10"
    assert code_of(refused(lambda: OllamaServer("http://127.0.0.1:9"))) == "E17"


def test_a_helper_leaves_the_code_to_its_caller(tmp_path: Path) -> None:
    from rpam_lite.fit.coefficients import load

    missing = tmp_path / "coefficients.json"
    assert code_of(refused(lambda: load(missing))) == "E12"
    assert code_of(refused(lambda: read_json(missing, "a file"))) == "E20"  # called by no module of ours


def test_a_code_given_by_hand_counts_and_travels_between_processes() -> None:
    error = RpamError("the disk is full", code="E08")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), code_of(again)) == ("the disk is full", "E08")


@pytest.mark.parametrize(
    ("error", "begins"),
    [
        (RpamError("too small.", code="E07"), "rpam: [E07] too small."),
        (OSError(errno.ENOSPC, "No space left on device", "/runs/x"), "rpam: [E08] /runs/x: No space left"),
        (ModuleNotFoundError("No module", name="llama_cpp"), "rpam: [E19] The package 'llama_cpp'"),
        (ModuleNotFoundError("No module", name="ours.mistake"), "rpam: [E20] unexpected ModuleNotFoundError"),
        (ZeroDivisionError("by zero"), "rpam: [E20] unexpected ZeroDivisionError: by zero"),
    ],
)
def test_the_command_line_prints_it(
    error: Exception,
    begins: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        fail_in_one_sentence(fail)
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith(begins)
