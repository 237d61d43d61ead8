"""The report page says what the run's files say, is valid HTML, fetches nothing and runs nothing."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tinyhtml5.parser import HTMLParser

from rpam_lite.checkpoint.files import read_json, write_json
from rpam_lite.report import heat
from rpam_lite.report.gather import fit_log, lambdas_of
from rpam_lite.report.markdown import closing, markdown, wish_kept
from rpam_lite.report.page import page
from tests.rpam_lite.finished_run import LAYERS, MATRICES, coefficients, make_run, report_of

HTML, SVG = "{http://www.w3.org/1999/xhtml}", "{http://www.w3.org/2000/svg}"
VOID_ATTRIBUTES = ("src", "srcset", "data", "poster", "action", "background", "ping")


def parsed(html: str) -> Any:
    """The tree of a page, which must have no error in its syntax, and no id twice."""
    parser = HTMLParser()
    tree = parser.parse(html)
    assert not parser.errors, parser.errors[:3]
    ids = [e.get("id") for e in tree.iter() if e.get("id")]
    assert len(ids) == len(set(ids))
    for reference in re.findall(r'(?:href="#|aria-labelledby=")([^"]+)"', html):
        assert set(reference.split()) <= set(ids), reference
    return tree


def words(element: Any) -> str:
    """The text of an element, spaces as one reads them."""
    return " ".join(" ".join(element.itertext()).split())


def section(tree: Any, name: str) -> Any:
    return next(e for e in tree.iter(f"{HTML}section") if e.get("id") == name)


def test_the_headline_is_that_of_the_smallest_good_file(tmp_path: Path) -> None:
    report = report_of(*make_run(tmp_path))
    assert report.headline.row["name"] == "Merge Q4_K_M"
    merge, long = report.headline.row, report.long
    assert report.headline.kept.value == pytest.approx(merge["accuracy"] / long["accuracy"])
    assert report.headline.saved.value == pytest.approx(1 - merge["tokens"] / long["tokens"])
    assert report.headline.saved.low < report.headline.saved.value < report.headline.saved.high
    tree = parsed(page(report))
    tiles = next(e for e in tree.iter(f"{HTML}dl"))
    assert "Accuracy kept, of Long’s 83.3 %" in words(tiles)
    assert f"{100 * report.headline.saved.value:.1f} %" in words(tiles)
    assert "30 % of the unquantized file’s" in words(tiles)


def test_a_bad_small_file_is_not_the_headline(tmp_path: Path) -> None:
    recipe, run = make_run(tmp_path)
    file = run / "eval" / "evaluation.json"
    text = file.read_text()
    row = text.rindex('"accuracy"', 0, text.rindex('"Merge Q4_K_M"') + 400)
    changed = re.sub(r"0\.8\d+", "0.7", text[row : row + 60], count=1)
    file.write_text(text[:row] + changed + text[row + 60 :])
    assert report_of(recipe, run).headline.row["name"] == "Merge Q8_0"


def test_every_figure_has_its_place(tmp_path: Path) -> None:
    report = report_of(*make_run(tmp_path))
    tree = parsed(page(report))
    for row in report.rows:
        assert row["name"] in words(section(tree, "results"))
    assert "0.001 ± 0.0001" in words(section(tree, "quantization"))
    assert "98.70 %" in words(section(tree, "quantization"))
    assert "1 calibration questions are labelled long, 2 short, 1 were dropped" in words(section(tree, "fit"))
    assert "1,234,567 values" in words(section(tree, "origin"))
    again = words(section(tree, "again"))
    for told in ("rpam run mine.yaml", "ab" * 32, "long_think_tokens: 4", "torch 2", "eval 61.0 s"):
        assert told in again
    assert str(tmp_path) not in page(report)
    # Every table has a caption, every picture a name and a description.
    for table in tree.iter(f"{HTML}table"):
        assert words(table[0]), "a table without caption"
        assert table[0].tag == f"{HTML}caption"
    pictures = [e for e in tree.iter(f"{SVG}svg") if e.get("role") == "img"]
    assert len(pictures) == 7  # frontier, two by level, lambda, and kl, regularizer, loss
    for picture in pictures:
        assert [words(e) != "" for e in picture][:2] == [True, True]


def test_headings_go_down_one_by_one(tmp_path: Path) -> None:
    levels = [int(h) for h in re.findall(r"<h([1-6])", page(report_of(*make_run(tmp_path, dial=True))))]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))


HOSTILE = "<script>alert(1)</script><img src=http://evil.example/x onerror=alert(1)>]]></svg></style>{{ 7 * 7 }}"


def test_hostile_answers_stay_text(tmp_path: Path) -> None:
    report = report_of(*make_run(tmp_path, say=lambda text: HOSTILE + text))
    html = page(report)
    tree = parsed(html)
    tags = {e.tag.removeprefix(HTML) for e in tree.iter() if isinstance(e.tag, str)}
    assert not tags & {"script", "img", "iframe", "object", "embed", "link", "base", "form"}
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "{{ 7 * 7 }}" in words(section(tree, "answers"))


def test_nothing_is_fetched(tmp_path: Path) -> None:
    html = page(report_of(*make_run(tmp_path, dial=True)))
    tree = parsed(html)
    for element in tree.iter():
        for name, value in element.attrib.items():
            assert name not in VOID_ATTRIBUTES, (element.tag, name)
            assert not name.startswith("on"), (element.tag, name)
            if name.endswith("href"):
                assert element.tag == f"{HTML}a", element.tag
                assert re.match(r"#|https://(arxiv\.org|huggingface\.co)/", value), value
    style = "".join(e.text for e in tree.iter(f"{HTML}style"))
    assert not re.search(r"url\(|@import|image-set", style)
    policy = next(e for e in tree.iter(f"{HTML}meta") if e.get("http-equiv") == "Content-Security-Policy")
    assert policy.get("content") == "default-src 'none'; style-src 'unsafe-inline'"


@pytest.mark.parametrize("granularity", ["scalar", "layer", "block", "matrix", "row", "element"])
def test_lambda_of_every_granularity(granularity: str, tmp_path: Path) -> None:
    tree = parsed(page(report_of(*make_run(tmp_path, granularity, types=()))))
    shown = section(tree, "lambda")
    cells = [e for e in shown.iter() if e.get("class", "").startswith("heat") and e.get("height") != "12"]
    parts = {"scalar": 0, "layer": 1, "block": 2}.get(granularity, len(MATRICES))
    assert len(cells) == parts * LAYERS * (2 if granularity == "row" else 1)
    if granularity == "scalar":
        assert "model 0.40" in words(shown)
        return
    assert "embed_tokens 0.50" in words(shown)
    assert "norm 1.20" in words(shown)  # outside 0 to 1: told, its colour the last one
    if granularity == "row":
        told = [words(e) for e in shown.iter(f"{SVG}g") if words(e).startswith("layer 0, mlp.gate_proj")]
        text = "layer 0, mlp.gate_proj: 0.38 ± 0.44, from 0.00 to 1.00 over 3 rows"
        assert told == [f"{text} 0.38", f"{text} 0.44"]  # lambda, and its spread


def test_lambda_of_many_layers_labels_only_some() -> None:
    chart = heat.heat_map(lambdas_of(coefficients("matrix", layers=64)))
    labels = re.findall(r'class="tick mid">(\d+)<', chart.svg)
    assert labels == [str(n) for n in range(0, 64, 5)]
    assert chart.svg.count("<rect") == 64 * len(MATRICES)
    # Attention above MLP, as a layer computes.
    assert re.findall(r'class="tick end">([^<]+)<', chart.svg) == [
        "input norm",
        "q_proj",
        "o_proj",
        "gate_proj",
        "down_proj",
    ]


@pytest.mark.parametrize("colours", [heat.LIGHT, heat.DARK, heat.SPREAD_LIGHT, heat.SPREAD_DARK])
def test_text_on_every_colour_can_be_read(colours: Any) -> None:
    steps = heat.palette(colours)
    assert len({colour for colour, _ in steps}) == heat.STEPS + 1
    for colour, ink in steps:
        one, other = ([int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in (colour, ink))
        assert heat.contrast(one, other) >= 4.5


def test_the_dial_is_shown_where_a_family_was_fitted(tmp_path: Path) -> None:
    tree = parsed(page(report_of(*make_run(tmp_path / "a", dial=True))))
    assert "other merges of the family, their dial beside them" in words(section(tree, "results"))
    with_family = words(section(tree, "fit"))
    assert "100 (taken)" in with_family
    assert "at most 1 point below Long. No member does that" in with_family
    assert "On 9 calibration questions that no fit saw." in with_family
    assert "The dial" not in page(report_of(*make_run(tmp_path / "b")))
    recipe, run = make_run(tmp_path / "c", dial=True)
    frontier = run / "fit" / "frontier.json"
    write_json(frontier, read_json(frontier, "the frontier") | {"measured": False})
    told = words(section(parsed(page(report_of(recipe, run))), "fit"))
    assert "By the parents' answers to 9 calibration questions." in told


def test_what_a_recipe_does_not_make_is_left_out_with_a_sentence(tmp_path: Path) -> None:
    recipe, run = make_run(
        tmp_path,
        levels=False,
        types=(),
        merge={"method": "ties", "options": {"density": 0.3}},
        quantize={"imatrix": False},
        eval={"scalar_curve": []},
    )
    for file in ("eval/manifest.json", "merge/verify.json"):
        (run / file).unlink()
    report = report_of(recipe, run)
    tree = parsed(page(report))
    assert "The questions tell no levels of difficulty" in words(section(tree, "levels"))
    assert "The method is ties with density 0.3: it fits no lambda" in words(section(tree, "lambda"))
    assert "Nothing was fitted" in words(section(tree, "fit"))
    assert "The recipe makes no quantized file" in words(section(tree, "quantization"))
    assert "Proven" not in words(section(tree, "origin"))
    assert "Long answers:" not in closing(report)
    assert "## Fit" not in markdown(report)


def test_without_importance_matrix_the_page_says_so(tmp_path: Path) -> None:
    tree = parsed(page(report_of(*make_run(tmp_path, quantize={"imatrix": False}))))
    assert "No importance matrix was used" in words(section(tree, "quantization"))


def test_terms_that_are_always_zero_are_left_out() -> None:
    steps = [{"alignment": 0.0, "kl": 2.0 / n, "regularizer": 0.1, "loss": 2.0 / n + 0.1} for n in (1, 2)]
    assert list(fit_log({"steps": steps}).terms) == ["kl", "regularizer", "loss"]
    alone = [{"alignment": 0.0, "kl": 2.0 / n, "loss": 2.0 / n} for n in (1, 2)]
    assert list(fit_log({"steps": alone}).terms) == ["kl"]
    assert fit_log({"steps": [], "layers": [{"layer": 0.0}]}).terms == {}


def test_a_fit_of_layers_alone_and_its_warning_are_told(tmp_path: Path) -> None:
    recipe, run = make_run(tmp_path)
    (run / "fit" / "fit.json").write_text(
        '{"steps": [], "layers": [{"layer": 0.0, "pull_first": 2.5}], "stopped": "epochs", "warning": "it never fell"}'
    )
    report = report_of(recipe, run)
    told = words(section(parsed(page(report)), "fit"))
    assert "Warning: it never fell." in told
    assert "layer pull first 0 2.5" in told
    assert "WARNING from the fit: it never fell." in closing(report)
    assert "The fit logged no joint steps" in markdown(report)


def test_the_commands_say_where_they_take_another_file_than_the_figures(tmp_path: Path) -> None:
    report = report_of(*make_run(tmp_path))
    assert report.use is not None
    name = report.headline_file.name
    same, other = (replace(report, use=replace(report.use, gguf_name=n)) for n in (name, "other.gguf"))
    assert "the figures at the top are of" not in words(parsed(page(same)))
    assert (
        f"the commands take other.gguf, the type that programs take unasked, and the figures at the top are of {name}"
        in (words(parsed(page(other))))
    )


def test_the_end_tells_what_became_of_the_wish() -> None:
    def row(name: str, kind: str, accuracy: float, tokens: float) -> dict[str, Any]:
        return {"name": name, "kind": kind, "accuracy": accuracy, "tokens": tokens}

    rows = [row("Long", "parent", 0.9, 100.0), row("Merge f16", "merge", 0.87, 89.0), row("Merge Q8_0", "merge", 0, 1)]
    assert wish_kept(rows, None, None) == ""
    assert wish_kept(rows, 0.8, None) == (
        "Wished for at most 80.0 % of Long's tokens: Merge f16 has 89.0 % on the held-out questions."
    )
    assert "at most 2 points below Long: Merge f16 is 3.0 below on the held-out" in wish_kept(rows, None, 2)
