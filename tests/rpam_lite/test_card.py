"""The model cards: front matter that the hub reads, licences, figures, and no path of this machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from rpam_lite.preflight import check
from rpam_lite.recipe import load_recipe
from rpam_lite.report.card import card, gguf_card
from rpam_lite.report.data import Licence, Parent
from rpam_lite.report.front_matter import joined, split
from rpam_lite.report.gather import gather_origin
from rpam_lite.report.licences import merged_licence, read_licence, what_follows
from rpam_lite.report.published import published_gguf, published_merge
from tests.conftest import ROOT
from tests.rpam_lite.finished_run import make_run, report_of
from tests.rpam_lite.test_commands import USE

ORIGIN = {
    "version": "0.1",
    "method": "rpam",
    "long": {"name": "deepseek/R1", "sha256": "a" * 64},
    "short": {"name": "Math", "sha256": "b" * 64},
    "donor": "long",
    "dtype": "float16",
}


def front(text: str) -> dict[str, Any]:
    assert text.startswith("---\n")
    return dict(yaml.safe_load(text.split("---\n")[1]))


def test_the_card_lists_what_differed(pair: Path, edit_json: Callable[..., None]) -> None:
    raw = yaml.safe_load((ROOT / "recipes" / "tiny.yaml").read_text())
    raw["parents"] = {"long": str(pair / "long"), "short": str(pair / "short")}
    for section in ("label", "eval"):
        raw[section]["questions"] = str(ROOT / "recipes" / raw[section]["questions"])
    (pair / "mine.yaml").write_text(yaml.safe_dump(raw))
    edit_json(pair / "short" / "config.json", max_position_embeddings=4096)
    recipe = load_recipe(pair / "mine.yaml")
    text = card(gather_origin(recipe, ORIGIN, [vars(f) for f in check(recipe, pair / "runs")]))
    told = front(text)
    # "Math" is a folder: the hub would link a model of that name.
    assert told["base_model"] == ["deepseek/R1"]
    assert "base_model lacks Math" in text
    assert told["base_model_relation"] == "merge"
    assert (told["library_name"], told["pipeline_tag"]) == ("transformers", "text-generation")
    assert "merge" in told["tags"]
    assert "license" not in told
    assert "Long and Short: unknown" in text
    assert "- `context`: long and short: `max_position_embeddings` is 512 and 4096. The merge: keeps 512" in text
    assert str(pair) not in text
    assert "What was measured" not in text
    assert "None." in card(gather_origin(recipe, ORIGIN, []))


def test_the_card_of_a_finished_run_has_the_figures_of_the_page(tmp_path: Path) -> None:
    recipe, run = make_run(tmp_path)
    (recipe.parents.long / "README.md").write_text("---\nlicense: MIT\n---\n# Long\n")
    (recipe.parents.short / "LICENSE").write_text("\n    Apache License\n    Version 2.0, January 2004\n")
    report = report_of(recipe, run)
    text = card(report.origin, report)
    head = report.headline
    assert f"**{100 * head.kept.value:.1f} % of Long's accuracy**" in text
    assert f"**{100 * head.saved.value:.1f} % of its tokens saved**" in text
    assert "| Scalar 0.5 |" in text  # the tuned one-number interpolation stands beside it
    assert "| Q4_K_M | 300 B | 0.001 ± 0.0001 |" in text
    assert "1,234,567 values" in text
    told = front(text)
    assert (told["license"], told["license_name"]) == ("other", "mit-and-apache-2.0")
    assert "Long's is mit (README.md); Short's is apache-2.0 (LICENSE)." in text
    assert "They differ" in text
    assert "Keep the copyright notices of both" in text
    assert str(tmp_path) not in text
    of_files = gguf_card(report)
    assert {"gguf", "merge"} <= set(front(of_files)["tags"])
    assert (front(of_files)["library_name"], front(of_files)["license"]) == ("gguf", "other")
    assert "Quantized for llama.cpp, weighed by an importance matrix" in of_files
    assert "ollama create mine -f Modelfile.mine-q4_k_m" in of_files


def test_the_card_of_an_unquantized_file_says_so(tmp_path: Path) -> None:
    report = report_of(*make_run(tmp_path, types=()))
    text = gguf_card(replace(report, use=replace(report.use, gguf="mine-f16.gguf", modelfile="")))
    assert "For llama.cpp, unquantized: F16, 1000 B." in text
    assert "importance matrix" not in text
    assert "Merge f16 (1000 B): **" in text
    assert "## Quantization" not in text
    assert "llama-cli -m mine-f16.gguf" in text
    assert "### Ollama" not in text


ON_HUB = replace(USE, on_hub=True, checkpoint="ada/mine", gguf="ada/mine-GGUF:Q4_K_M", modelfile="Modelfile.mine")


def test_a_published_card_has_the_commands_for_the_hub_alone(tmp_path: Path) -> None:
    report = report_of(*make_run(tmp_path))
    for local, published in (
        (card(report.origin, report), published_merge(card(report.origin, report), ON_HUB, Licence("mit"), True)),
        (gguf_card(report), published_gguf(gguf_card(report), ON_HUB, Licence("mit"))),
    ):
        said, ending = local.partition("\n## Use\n")[::2]
        assert ending
        assert split(said)[1].rstrip() in published
        assert "\n## Use\n" not in published
        assert published.count("\n## Use it\n") == 1
        assert "llama-cli -hf ada/mine-GGUF:Q4_K_M" in published
        assert "Modelfile.mine-q4_k_m" not in published
        assert front(published)["license"] == "mit"
        assert published.endswith(".\n")


def test_a_published_card_keeps_its_front_matter() -> None:
    told = {"license": "mit", "base_model": ["org/a", "org/b"], "base_model_relation": "merge", "tags": ["merge"]}
    text = joined(told, "# mine")
    published = published_merge(text, ON_HUB, Licence("apache-2.0"), False)
    assert front(published) == told
    assert "# mine\n" in published
    assert "report/report.md" not in published
    assert "[report](report/report.md)" in published_merge(text, ON_HUB, Licence("mit"), True)
    quantized = {"base_model": "ada/mine", "base_model_relation": "quantized"}
    assert front(published_gguf(text, ON_HUB, Licence("mit"))) == told | quantized


def test_front_matter_is_taken_off_and_put_on() -> None:
    told = {"license": "mit", "title": "a --- b", "tags": ["é"]}
    assert split(joined(told, "\n# A\n\n---\n\nb\n\n")) == (told, "\n# A\n\n---\n\nb\n")
    assert joined(told, "# A", "left out: b").splitlines()[-4:] == ["# left out: b", "---", "", "# A"]
    assert split(joined(told, "# A", "left out: b"))[0] == told
    for text in ("---\nlicense: mit\n---", "\n--- \nlicense: mit\n---  \n"):
        assert split(text) == ({"license": "mit"}, "")
    assert split("---\n---\n# A\n") == ({}, "# A\n")
    # None that can be read.
    for text in (
        "# A\n",
        "---\nlicense: mit\n",
        "---\n[: broken\n---\n",
        "---\n- a\n---\n",
        "---\nat: 2024-13-01\n---\n",
    ):
        assert split(text) == ({}, text)


def parents(long: Licence, short: Licence) -> list[Parent]:
    return [Parent("long", "a/l", "0", long), Parent("short", "a/s", "1", short)]


APACHE, LLAMA = Licence("apache-2.0", found="README.md"), Licence("llama3.1", found="LICENSE")


@pytest.mark.parametrize(
    ("long", "short", "merged", "sentence"),
    [
        (APACHE, replace(APACHE, found="LICENSE"), "apache-2.0", "under the same licence"),
        (APACHE, LLAMA, "other", "Built with Llama"),
        (APACHE, Licence("cc-by-nc-4.0", found="README.md"), "other", "no commercial use"),
        (APACHE, Licence("unknown"), "unknown", "Short: unknown"),
        (APACHE, Licence("apache-2.0", link="https://x.org", found="README.md"), "apache-2.0", "the same licence"),
        (Licence("other", found="the hub"), Licence("other", found="the hub"), "unknown", "Long and Short: unknown"),
        (Licence("other", "qwen-research", found="README.md"), APACHE, "other", "They differ"),
    ],
)
def test_what_follows_from_both_licences(long: Licence, short: Licence, merged: str, sentence: str) -> None:
    both = parents(long, short)
    assert merged_licence(both).id == merged
    assert sentence in " ".join(what_follows(both))


def test_an_unknown_licence_is_not_called_the_same() -> None:
    told = " ".join(what_follows(parents(Licence("unknown"), Licence("unknown"))))
    assert told.startswith("Long and Short: unknown")
    assert "same" not in told
    assert "copyright" not in told


def test_a_licence_is_read_from_what_there_is(tmp_path: Path) -> None:
    assert read_licence(tmp_path).id == "unknown"
    (tmp_path / "LICENSE.txt").write_text("Special Licence of Ours\nyou may look at it")
    assert read_licence(tmp_path) == Licence("other", "Special Licence of Ours", found="LICENSE.txt")
    (tmp_path / "LICENSE").write_text("LLAMA 3.1 COMMUNITY LICENSE AGREEMENT")
    assert read_licence(tmp_path).id == "llama3.1"
    (tmp_path / "README.md").write_text("---\nlicense: other\nlicense_name: x\nlicense_link: https://x.org\n---\n")
    assert read_licence(tmp_path) == Licence("other", "x", "https://x.org", "README.md")
    # A README that is no YAML, or tells no licence, decides nothing.
    for text in ("---\n[: broken\n---\n", "# Model\n", "---\ntags: [a]\n---\n", "---\nlicense: [a, b]\n---\n"):
        (tmp_path / "README.md").write_text(text)
        assert read_licence(tmp_path).id == "llama3.1"
