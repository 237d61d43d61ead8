"""Links lead somewhere, commands and options exist, and what a page tells of files is so."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import typer
import yaml

from quant.records import RECORD_VERSION
from rpam_lite.cli import app
from rpam_lite.patterns.label import PATTERN_VERSION
from rpam_lite.patterns.samples import SAMPLE_VERSION
from rpam_lite.pipeline.manifest import MANIFEST_VERSION
from tests.conftest import ROOT

PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
_CODE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as the site makes them and as code hosts do."""
    headings = re.findall(r"^#+ (.+)$", _CODE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    plain = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading) for heading in headings]
    words = [re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in plain]
    return {re.sub(r"[-\s]+", "-", word) for word in words}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in _LINK.findall(_CODE.sub("", page.read_text(encoding="utf-8"))):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        file = page if not name else (page.parent / name).resolve()
        assert file.exists(), f"{page.name}: {target}"
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file), f"{page.name}: {target}"


def test_every_page_is_in_the_sites_menu() -> None:
    told = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]

    def files(entry: object) -> Iterator[str]:
        for value in entry if isinstance(entry, list) else entry.values() if isinstance(entry, dict) else [entry]:
            yield from [value] if isinstance(value, str) else files(value)

    assert sorted(files(told)) == sorted(page.name for page in (ROOT / "docs").glob("*.md"))


def commands(page: Path) -> Iterator[str]:
    """What follows `rpam` wherever a page names a command, in fences and in the text."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for line in re.findall(r"^(?:\.venv/bin/)?rpam (.+)$|`(?:\.venv/bin/)?rpam ([^`]+)`", text, re.MULTILINE):
        yield (line[0] or line[1]).split(" # ")[0].split(" > ")[0]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_their_options_exist(page: Path) -> None:
    top = typer.main.get_command(app)
    for line in commands(page):
        command: click.Command = top
        for word in shlex.split(line.replace("'", "")):
            known = getattr(command, "commands", None)
            if known is not None and word.isupper():
                break  # COMMAND, standing for any
            if known is not None and not word.startswith("-"):
                assert word in known, f"{page.name}: rpam {line}"
                command = known[word]
            elif word.startswith("--") and word != "--help":
                options = [name for p in command.params for name in p.opts]
                assert word.split("=")[0] in options, f"{page.name}: rpam {line}"


def test_the_versions_of_files_are_those_of_the_page() -> None:
    table = (ROOT / "docs" / "files.md").read_text(encoding="utf-8")
    for file, version in (
        ("STAGE/manifest.json", MANIFEST_VERSION),
        ("label/patterns.jsonl", PATTERN_VERSION),
        ("samples/long-HASH.jsonl", SAMPLE_VERSION),
        ("eval/records-HASH.jsonl", RECORD_VERSION),
    ):
        row = next(line for line in table.split("\n") if line.startswith(f"| `{file}`"))
        assert row.split("|")[3].strip() == str(version), file
