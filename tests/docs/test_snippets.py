"""The Python of docs/python.md and docs/extending.md is run as it stands; of other pages it must at least be Python.

A fence with a title is a file; the others of a page are one program.
"""

from __future__ import annotations

import ast
import importlib
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from export.gguf import architecture, architectures
from tests.conftest import ROOT

_FENCE = re.compile(r"^```(\w+)(?: title=\"([^\"]+)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


class Fence(NamedTuple):
    """A block of code: its language, the file that it is, its text, and its line on the page."""

    language: str
    title: str | None
    text: str
    line: int


def fences(page: Path) -> list[Fence]:
    text = page.read_text(encoding="utf-8")
    return [Fence(m[1], m[2] or None, m[3], text[: m.start()].count("\n") + 2) for m in _FENCE.finditer(text)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where a page is run: the recipes, and nothing else."""
    (tmp_path / "recipes").symlink_to(ROOT / "recipes", target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(
        architectures, "__path__", [*architectures.__path__, str(tmp_path / "export/gguf/architectures")]
    )
    architecture.known_architectures.cache_clear()
    yield tmp_path
    architecture.known_architectures.cache_clear()
    for module in [m for m in sys.modules if m.startswith(f"{architectures.__name__}.")]:
        if str(tmp_path) in str(getattr(sys.modules[module], "__file__", "")):
            del sys.modules[module]


def install(project: str, folder: Path) -> None:
    """What pip leaves of a pyproject.toml for Python to find: the entry points."""
    told = tomllib.loads(project)["project"]
    info = folder / f"{told['name'].replace('-', '_')}-{told['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {told['name']}\nVersion: {told['version']}\n")
    lines = [f"[{g}]\n" + "".join(f"{n} = {v}\n" for n, v in p.items()) for g, p in told["entry-points"].items()]
    (info / "entry_points.txt").write_text("\n".join(lines))
    importlib.invalidate_caches()


@pytest.mark.parametrize("page", ["python.md", "extending.md"])
def test_the_page_runs(page: str, folder: Path) -> None:
    program: dict[str, object] = {"__name__": "page"}
    ran = 0
    for fence in fences(ROOT / "docs" / page):
        if fence.title is not None:
            file = folder / fence.title
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(fence.text, encoding="utf-8")
            if fence.title == "pyproject.toml":
                install(fence.text, folder)
        elif fence.language == "python":
            # Padded, so that a traceback names the line of the page.
            exec(compile("\n" * (fence.line - 1) + fence.text, page, "exec"), program)
            ran += 1
    assert ran >= 3


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_python_parses_and_what_it_imports_of_ours_exists(page: Path) -> None:
    for fence in fences(page):
        if fence.language != "python":
            continue
        for node in ast.walk(ast.parse(fence.text)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in (
                "rpam_lite",
                "quant",
                "export",
            ):
                module = importlib.import_module(node.module or "")
                missing = [alias.name for alias in node.names if not hasattr(module, alias.name)]
                assert not missing, f"{page.name}: {node.module} has no {missing}"
