"""`rpam publish` against a small server that answers as the hub does: what is sent, and what is said."""

from __future__ import annotations

import hashlib
import json
from functools import partial
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rpam_lite.cli import app
from rpam_lite.errors import RpamError
from rpam_lite.pipeline.stage import Run
from tests.rpam_lite.hub_that_takes import Hub, front, taking_hub
from tests.rpam_lite.published_run import MADE, do, run_to_publish

hub = pytest.fixture(taking_hub)
run = pytest.fixture(run_to_publish)


def test_a_dry_run_lists_files_and_asks_nobody(run: Run, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    result = CliRunner().invoke(app, ["publish", str(run.folder), "--to", "ada/tiny", "--dry-run"])
    assert result.exit_code == 0, result.exception
    assert hub.asked == []
    lines = result.stdout.splitlines()
    size = (run.of("merge") / "tiny/model.safetensors").stat().st_size
    assert f"{size:>16,}  model.safetensors" in lines
    assert f"{20:>16,}  tiny-q8_0.gguf" in lines
    assert lines.index("ada/tiny:") < lines.index("ada/tiny-GGUF:")
    assert not [line for line in lines if "use.md" in line or "manifest" in line]
    assert "nothing was sent" in lines[-1]


def test_everything_goes_where_it_belongs(run: Run, hub: Hub) -> None:
    said = do(run)
    merge, gguf = hub.repositories["ada/tiny"], hub.repositories["ada/tiny-GGUF"]
    folder = run.of("merge") / "tiny"
    for name in ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"):
        assert merge[name] == (folder / name).read_bytes()
    assert {n for n in merge if n.startswith("report/")} == {
        "report/report.md",
        "report/coefficients.json",
        "report/evaluation.json",
        "report/divergence.json",
    }
    told = front(merge["README.md"])
    assert (told["base_model"], told["base_model_relation"]) == (["acme/long"], "merge")
    assert "license" not in told
    assert set(gguf) == {
        "README.md",
        "params",
        "tiny-q8_0.gguf",
        "tiny-q4_k_m.gguf",
        "Modelfile.tiny-q8_0",
        "Modelfile.tiny-q4_k_m",
        "tiny.imatrix.gguf",
    }
    assert gguf["tiny-q4_k_m.gguf"] == MADE["quantize/tiny-q4_k_m.gguf"]
    told = front(gguf["README.md"])
    assert (told["base_model"], told["base_model_relation"]) == ("ada/tiny", "quantized")
    assert b"98 % on transformers" in merge["README.md"]
    assert b"98 % on gguf" in gguf["README.md"]
    for card in (merge["README.md"], gguf["README.md"]):
        assert b"llama-cli -hf ada/tiny-GGUF:Q4_K_M" in card
        assert b"runs/tiny" not in card
    assert b"vllm serve ada/tiny" in merge["README.md"]
    assert b"vllm" not in gguf["README.md"]
    params = json.loads(gguf["params"])
    assert (params["temperature"], params["num_ctx"], params["stop"][0]) == (0.6, 1024, "<|im_end|>")
    assert hub.public == {"ada/tiny", "ada/tiny-GGUF"}
    assert "Long's is mit (the hub). Short: unknown, no licence was found" in said[0]
    assert "WARNING: the card names no licence" in said[1]
    assert said[-1] == f"there now: {hub.url}/ada/tiny-GGUF"


def test_where_nothing_is_quantized_the_whole_file_goes(tmp_path: Path, hub: Hub) -> None:
    run = run_to_publish(tmp_path, types=())
    do(run, parts=("gguf",))
    gguf = hub.repositories["ada/tiny-GGUF"]
    assert set(gguf) == {"README.md", "params", "tiny-f16.gguf", "tiny.imatrix.gguf"}
    assert gguf["tiny-f16.gguf"] == MADE["export/tiny-f16.gguf"]
    assert b"98 % on gguf" in gguf["README.md"]
    assert b"llama-cli -hf ada/tiny-GGUF:F16" in gguf["README.md"]
    assert b"ollama" not in gguf["README.md"]  # it has no Modelfile
    (run.of("export") / "README.md").unlink()
    with pytest.raises(RpamError, match=r"stage 'report' is not done"):
        do(run, parts=("gguf",))


def test_only_what_is_wanted_goes(run: Run, hub: Hub) -> None:
    do(run, "lab/tiny", ("gguf",), private=True)
    assert set(hub.repositories) == {"lab/tiny-GGUF"}
    assert hub.public == set()


def test_an_upload_that_broke_off_goes_on(run: Run, hub: Hub) -> None:
    hub.refused_sizes = {len(MADE["quantize/tiny-q4_k_m.gguf"])}
    with pytest.raises(RpamError, match=r"ada/tiny-GGUF: the hub .*tiny-q4_k_m.gguf.*run the same command again"):
        do(run)
    assert hub.repositories["ada/tiny-GGUF"] == {}
    already = set(hub.stored)
    weights = hashlib.sha256((run.of("merge") / "tiny/model.safetensors").read_bytes()).hexdigest()
    assert weights in already
    hub.refused_sizes, hub.asked = set(), []
    do(run)
    sent = {path.rpartition("/")[2] for method, path in hub.asked if method == "PUT"}
    assert sent
    assert not sent & already
    assert hub.repositories["ada/tiny-GGUF"]["tiny-q4_k_m.gguf"] == MADE["quantize/tiny-q4_k_m.gguf"]


def test_parents_of_one_licence_name_it(run: Run, hub: Hub) -> None:
    for name, licence in (("long", "llama3.1"), ("short", "llama3.1")):
        (getattr(run.recipe.parents, name) / "README.md").write_text(f"---\nlicense: {licence}\n---\n")
    said = do(run)
    assert front(hub.repositories["ada/tiny"]["README.md"])["license"] == "llama3.1"
    assert front(hub.repositories["ada/tiny-GGUF"]["README.md"])["license"] == "llama3.1"
    assert "Long's is llama3.1 (README.md); Short's is llama3.1 (README.md)" in said[0]
    assert "begins with “Llama”" in said[0]


def test_a_licence_file_counts_as_in_the_card(run: Run, hub: Hub) -> None:
    for name in ("long", "short"):
        (getattr(run.recipe.parents, name) / "LICENSE").write_text("MIT License\n")
    said = do(run)
    assert front(hub.repositories["ada/tiny-GGUF"]["README.md"])["license"] == "mit"
    assert not any("names no licence" in line for line in said)


def test_a_file_that_tells_of_this_machine_is_named(run: Run, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not [line for line in do(run, dry=True) if "names folders" in line]
    monkeypatch.setattr(Path, "home", lambda: Path("# tiny"))  # what stands in report.md
    warnings = [line for line in do(run, dry=True) if "names folders" in line]
    assert warnings[0].startswith("WARNING: report/report.md names folders of this machine; look at")
    assert all("README.md names folders of this machine; mend what" in line for line in warnings[1:])


def test_modelfiles_and_texts_made_for_the_hub_are_read_too(
    run: Run, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place, name in (("FROM", "Modelfile"), ("num_ctx", "params")):
        monkeypatch.setattr(Path, "home", partial(Path, place))
        assert [line for line in do(run, dry=True) if line.startswith(f"WARNING: {name}") and "names folders" in line]


def test_a_licence_that_is_settled_stands_in_both_cards(run: Run, hub: Hub) -> None:
    said = do(run, license_id="Apache-2.0")
    assert not any("names no licence" in line for line in said)
    for name in ("ada/tiny", "ada/tiny-GGUF"):
        assert front(hub.repositories[name]["README.md"])["license"] == "apache-2.0"
