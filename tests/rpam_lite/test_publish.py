"""`rpam publish` against a small server that answers as the hub does: what is sent, and what is refused."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import yaml
from huggingface_hub import constants
from typer.testing import CliRunner

from rpam_lite.checkpoint.publish import check_name
from rpam_lite.cli import app
from rpam_lite.errors import RpamError
from rpam_lite.pipeline.manifest import execute
from rpam_lite.pipeline.opening import keep_recipe
from rpam_lite.pipeline.publishing import publish
from rpam_lite.pipeline.stage import Run
from rpam_lite.pipeline.trip import STAGES
from rpam_lite.recipe import load_recipe
from rpam_lite.report.commands import Use
from rpam_lite.report.published import merge_card
from tests.conftest import ROOT
from tests.rpam_lite.test_commands import USE
from tests.rpam_lite.test_hub import go_to

ALL = ("merged", "gguf", "report")


class Hub:
    """Repositories in memory; large files arrive one by one, then a commit names them."""

    def __init__(self) -> None:
        self.user: dict[str, Any] = {
            "name": "ada",
            "orgs": [{"name": "lab"}],
            "auth": {"accessToken": {"role": "write"}},
        }
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.public: set[str] = set()
        self.stored: dict[str, bytes] = {}
        self.asked: list[tuple[str, str]] = []
        self.refused_sizes: set[int] = set()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                path = self.path.split("?")[0]
                hub.asked.append((self.command, path))
                code, told = hub.answer(self.command, path, body, self.headers.get("Authorization"))
                data = json.dumps(told).encode()
                self.send_response(code)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_PUT = answer  # noqa: N815

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, method: str, path: str, body: bytes, token: str | None) -> tuple[int, Any]:
        if method == "PUT":
            if len(body) in self.refused_sizes:
                return 403, {"error": "the line broke"}
            self.stored[path.rpartition("/")[2]] = body
            return 200, {}
        if token != "Bearer hf_good":
            return 401, {"error": "Invalid username or password."}
        if path == "/api/whoami-v2":
            return 200, self.user
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else f"ada/{asked['name']}"
            if name in self.repositories:
                return 409, {"error": "there already", "url": f"{self.url}/{name}"}
            self.repositories[name] = {}
            if not asked.get("private") and asked.get("visibility") != "private":
                self.public.add(name)
            return 200, {"url": f"{self.url}/{name}", "name": name}
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(preupload|commit)/main)?", path):
            name, what = found.groups()
            if name == "acme/long":
                return 200, {"id": name, "cardData": {"license": "mit"}}
            if what == "preupload":
                files = json.loads(body)["files"]
                modes = {
                    f["path"]: "lfs" if f["path"].endswith((".safetensors", ".gguf")) else "regular" for f in files
                }
                return 200, {
                    "files": [{"path": p, "uploadMode": mode, "shouldIgnore": False} for p, mode in modes.items()]
                }
            if what == "commit":
                return 200, self.commit(name, body)
            return 200, {"id": name, "private": name not in self.public, "sha": "0" * 40}
        if path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                {
                    **o,
                    "actions": {"upload": {"href": f"{self.url}/store/{o['oid']}"}}
                    if o["oid"] not in self.stored
                    else {},
                }
                for o in json.loads(body)["objects"]
            ]
            return 200, {
                "transfer": "basic",
                "objects": [o if o["actions"] else {k: o[k] for k in ("oid", "size")} for o in objects],
            }
        return 404, {"error": f"no such place: {method} {path}"}

    def commit(self, name: str, body: bytes) -> dict[str, Any]:
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                self.repositories[name][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.repositories[name][value["path"]] = self.stored[value["oid"]]
        return {"commitUrl": f"{self.url}/{name}/commit/{'1' * 40}", "commitOid": "1" * 40}

    def sent(self) -> int:
        return sum(method == "PUT" for method, _ in self.asked)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    go_to(hub.url, monkeypatch)
    yield hub
    hub.server.shutdown()


class Silent:
    def start(self, what: str, total: int) -> Any:
        return lambda note: None


# What each stage leaves, as far as it is published; the merge is a copy of the Long parent.
MADE = {
    "fit/coefficients.json": b"{}",
    "imatrix/tiny.imatrix.gguf": b"matrix",
    "export/tiny-f16.gguf": b"GGUF" * 9,
    "quantize/tiny-q8_0.gguf": b"GGUF" * 5,
    "quantize/tiny-q4_k_m.gguf": b"GGUF" * 3,
    "quantize/Modelfile.tiny-q8_0": b"FROM ./tiny-q8_0.gguf\n",
    "quantize/Modelfile.tiny-q4_k_m": b"FROM ./tiny-q4_k_m.gguf\n",
    "divergence/divergence.json": json.dumps({"files": {"Q8_0": {"mean": 0.0012}, "Q4_K_M": {"mean": 0.034}}}).encode(),
    "eval/evaluation.json": b"{}",
    "report/report.md": b"# tiny\n",
    "report/use.md": b"rpam chat /home/ada/runs/tiny\n",
}
CARD = "---\nbase_model:\n- acme/long\n- short\ntags:\n- merge\n---\n\n# tiny\n\nBoth parents' licences apply to it.\n"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A finished run, its stages stamped as ever, the work left out."""
    recipe = load_recipe(Path("tiny"))
    long = shutil.copytree(ROOT / "recipes/tiny/long", tmp_path / "hub/models--acme--long/snapshots/0123")
    short = shutil.copytree(ROOT / "recipes/tiny/short", tmp_path / "short")
    recipe = recipe.model_copy(update={"parents": recipe.parents.model_copy(update={"long": long, "short": short})})
    run = Run(recipe, tmp_path / "runs/tiny", Silent(), lambda text: None)

    def leave(name: str) -> None:
        for place, content in MADE.items():
            if place.startswith(f"{name}/"):
                (run.folder / place).parent.mkdir(parents=True, exist_ok=True)
                (run.folder / place).write_bytes(content)
        if name == "merge":
            shutil.copytree(long, run.of("merge") / "tiny")
            (run.of("merge") / "tiny/README.md").write_text(CARD)

    for name, stage in STAGES.items():
        if stage.applies(recipe):
            execute(replace(stage, action=lambda r, name=name: leave(name), refuses=lambda r: None), STAGES, run)
    keep_recipe(recipe, run.folder)
    (run.folder / "rpam.log").touch()
    return run


def do(
    run: Run, to: str = "ada/tiny", parts: tuple[str, ...] = ALL, private: bool = False, dry: bool = False
) -> list[str]:
    said: list[str] = []
    publish(run, to, parts, private, dry, said.append)
    return said


def front(text: bytes) -> dict[str, Any]:
    return dict(yaml.safe_load(text.decode().split("---\n")[1]))


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
    # `short` is a folder of this machine, no model of the hub.
    assert (told["base_model"], told["base_model_relation"]) == (["acme/long"], "merge")
    assert "license" not in told
    assert b"llama-cli -hf ada/tiny-GGUF:Q4_K_M" in merge["README.md"]
    assert str(run.folder).encode() not in merge["README.md"]
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
    assert (front(gguf["README.md"])["base_model"], front(gguf["README.md"])["base_model_relation"]) == (
        "ada/tiny",
        "quantized",
    )
    assert b"| `tiny-q4_k_m.gguf` | 12 B | 0.034 |" in gguf["README.md"]
    assert b"vllm serve ada/tiny" in merge["README.md"]
    assert b"vllm" not in gguf["README.md"]
    params = json.loads(gguf["params"])
    assert (params["temperature"], params["num_ctx"], params["stop"][0]) == (0.6, 1024, "<|im_end|>")
    assert hub.public == {"ada/tiny", "ada/tiny-GGUF"}
    assert "Long's is mit (the hub). Short: unknown, no licence was found" in said[0]
    assert "WARNING: the card names no licence" in said[1]
    assert said[-1] == f"there now: {hub.url}/ada/tiny-GGUF"


def test_the_card_of_the_files_tells_what_was_measured(run: Run, hub: Hub) -> None:
    local = (
        CARD.replace("- merge", "- gguf") + "\n## What was measured\n\n98 % right.\n\n## Use\n\nrpam chat runs/tiny\n"
    )
    (run.of("quantize") / "README.md").write_text(local)
    do(run, parts=("gguf",))
    card = hub.repositories["ada/tiny-GGUF"]["README.md"]
    assert front(card)["base_model"] == "ada/tiny"
    assert front(card)["tags"] == ["gguf"]
    assert b"98 % right." in card
    assert b"ada/tiny-GGUF:Q4_K_M" in card
    assert b"runs/tiny" not in card


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


def test_what_the_token_may_not_is_said_before_anything_is_sent(
    run: Run, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RpamError, match="--to eve/tiny: the token is of ada, who can write to ada, lab"):
        do(run, "eve/tiny")
    hub.user["auth"]["accessToken"]["role"] = "read"
    with pytest.raises(RpamError, match="the token of ada can only read; run `hf auth login`"):
        do(run)
    monkeypatch.setenv("HF_TOKEN", "hf_bad")
    with pytest.raises(RpamError, match="the hub refuses the token; run `hf auth login`"):
        do(run)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(RpamError, match="this machine has no token for the hub; run `hf auth login`"):
        do(run)
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    go_to("http://127.0.0.1:9", monkeypatch)
    with pytest.raises(RpamError, match="ada/tiny: the hub can't be reached"):
        do(run)
    assert hub.repositories == {}


def test_a_public_repository_does_not_become_private_unnoticed(run: Run, hub: Hub) -> None:
    hub.repositories["ada/tiny"] = {}
    hub.public.add("ada/tiny")
    with pytest.raises(RpamError, match="ada/tiny: is there already and everybody can see it"):
        do(run, private=True)
    assert hub.repositories["ada/tiny"] == {}


def test_an_unfinished_or_changed_run_is_refused(run: Run, hub: Hub) -> None:
    recipe = run.recipe
    changed = replace(run, recipe=recipe.model_copy(update={"fit": recipe.fit.model_copy(update={"start": 0.7})}))
    with pytest.raises(RpamError, match="stage 'merge' is not done for this recipe as it is now, and 'publish' needs"):
        do(changed)
    (run.of("quantize") / "tiny-q8_0.gguf").write_bytes(b"cut off")
    with pytest.raises(RpamError, match="stage 'quantize' is not done"):
        do(run, dry=True)
    assert hub.asked == []


def test_a_file_that_tells_of_this_machine_is_named(run: Run, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not [line for line in do(run, dry=True) if "names folders" in line]
    monkeypatch.setattr(Path, "home", lambda: Path("# tiny"))  # what stands in report.md
    (warning,) = [line for line in do(run, dry=True) if "names folders" in line]
    assert warning.startswith("WARNING: report/report.md names folders of this machine; look at")


@pytest.mark.parametrize("name", ["tiny", "ada/tiny/x", "ada/", "../tiny", "ada/tiny-GGUF", "ada/t--y"])
def test_names_that_can_not_be(name: str) -> None:
    with pytest.raises(RpamError, match=f"--to {re.escape(name)}: "):
        check_name(name)


def test_a_card_keeps_what_it_says() -> None:
    use: Use = replace(USE, on_hub=True, checkpoint="ada/mine", gguf="ada/mine-GGUF:Q4_K_M", modelfile="Modelfile.mine")
    text = merge_card("---\nbase_model: [org/a, org/b]\nlicense: mit\ntags: [merge]\n---\n# mine\n", use, None, False)
    assert front(text.encode()) == {
        "license": "mit",
        "tags": ["merge"],
        "base_model": ["org/a", "org/b"],
        "base_model_relation": "merge",
        "pipeline_tag": "text-generation",
    }
    assert "# mine\n" in text
    assert "report/report.md" not in text
