"""Parents named by an id on the hub, against a small server that answers as the hub does."""

from __future__ import annotations

import errno
import hashlib
import json
import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from huggingface_hub import constants

from rpam_lite.checkpoint.hub import fetch, fetch_headers, is_hub_id, local_or_hub, missing_bytes, readable_name
from rpam_lite.errors import RpamError
from rpam_lite.pipeline.parents import downloaded, findings_of
from rpam_lite.pipeline.planning import plan_cards
from rpam_lite.recipe import Recipe, load_recipe
from tests.conftest import ROOT

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Serves folders as models; keeps what was asked for."""

    def __init__(self, models: dict[str, Path], gated: tuple[str, ...] = ()) -> None:
        self.models, self.gated = models, gated
        self.asked: list[tuple[str, str, str | None]] = []  # method, path, range
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub.answer(self)

            do_HEAD = do_GET  # noqa: N815

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path, wanted = request.path.split("?")[0], request.headers.get("Range")
        self.asked.append((request.command, path, wanted))
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?(/.*)?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        name, revision = (api[1], api[3]) if api else (file[1], file[2]) if file else ("", "")
        if name not in self.models:
            return self.send(request, 404, b"{}", {"X-Error-Code": "RepoNotFound"})
        if name in self.gated:
            return self.send(request, 403, b"{}", {"X-Error-Code": "GatedRepo"})
        if revision not in (None, "main", COMMIT):
            return self.send(request, 404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        files = sorted(p for p in self.models[name].iterdir() if p.is_file())
        if api and api[2] == "tree":
            tree = [
                {
                    "type": "file",
                    "path": f.name,
                    "size": f.stat().st_size,
                    "oid": f"{len(f.name):040x}",
                }
                for f in files
            ]
            return self.send(request, 200, json.dumps(tree).encode())
        if api:
            told = {"id": name, "modelId": name, "sha": COMMIT, "siblings": [{"rfilename": f.name} for f in files]}
            return self.send(request, 200, json.dumps(told).encode())
        assert file
        path = self.models[name] / file[3]
        if not path.exists():
            return self.send(request, 404, b"", {"X-Error-Code": "EntryNotFound"})
        content = path.read_bytes()
        headers = {
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Repo-Commit": COMMIT,
            "Accept-Ranges": "bytes",
        }
        if wanted:
            first, last = (int(n) if n else len(content) for n in wanted.removeprefix("bytes=").split("-"))
            part = content[first : last + 1]
            headers["Content-Range"] = f"bytes {first}-{first + len(part) - 1}/{len(content)}"
            return self.send(request, 206, part, headers)
        return self.send(request, 200, content, headers)

    def send(
        self, request: BaseHTTPRequestHandler, code: int, body: bytes, headers: dict[str, str] | None = None
    ) -> None:
        request.send_response(code)
        for name, value in ({"Content-Type": "application/json"} | (headers or {})).items():
            request.send_header(name, value)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(body)

    def weights_read_whole(self) -> bool:
        return any(m == "GET" and p.endswith(".safetensors") and not r for m, p, r in self.asked)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    tiny = ROOT / "recipes/tiny"
    models = {"acme/long": tiny / "long", "acme/short": tiny / "short", "acme/closed": tiny / "base"}
    hub = Hub(models, gated=("acme/closed",))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    go_to(hub.url, monkeypatch)
    yield hub
    hub.server.shutdown()


def go_to(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")


def recipe(folder: Path, **parents: str) -> Recipe:
    raw = yaml.safe_load((ROOT / "recipes/tiny.yaml").read_text(encoding="utf-8"))
    raw["parents"] = {"long": "acme/long", "short": "acme/short"} | parents
    for section in ("label", "eval"):
        raw[section]["questions"] = str(ROOT / "recipes" / raw[section]["questions"])
    (folder / "mine.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    return load_recipe(folder / "mine.yaml")


def test_what_is_an_id_and_what_a_folder(tmp_path: Path) -> None:
    (tmp_path / "mine/long").mkdir(parents=True)
    assert local_or_hub(tmp_path, Path("mine/long")) == tmp_path / "mine/long"
    for given in ("acme/long", "acme/long@main", "Qwen/Qwen3-4B-Thinking-2507@refs/pr/3"):
        assert is_hub_id(local_or_hub(tmp_path, Path(given)))
    for given in ("long", "../acme/long", "./a/b/c", "a/b/c"):
        assert not is_hub_id(local_or_hub(tmp_path, Path(given)))
    assert readable_name(Path("/x/models--acme--long/snapshots/0123")) == "acme/long"
    assert readable_name(Path("/x/long")) == "long"


def test_a_check_reads_headers_only_and_says_what_a_local_one_says(hub: Hub, tmp_path: Path) -> None:
    remote = findings_of(recipe(tmp_path), tmp_path)
    assert not hub.weights_read_whole()
    assert any(p.endswith("model.safetensors") and r == "bytes=0-100000" for _, p, r in hub.asked)
    tiny = ROOT / "recipes/tiny"
    local = findings_of(recipe(tmp_path, long=str(tiny / "long"), short=str(tiny / "short")), tmp_path)
    here, there = ([f.message for f in found if f.code != "disk"] for found in (local, remote))
    assert there == [message.replace(f"{tiny}/", "acme/") for message in here]
    table = plan_cards(recipe(tmp_path), None, 8, 64, None).table()
    assert "acme/short" in str(table.title)
    assert not hub.weights_read_whole()


def test_a_run_checks_first_then_downloads_once_and_works_offline_after(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    with pytest.raises(RpamError, match="nothing was downloaded"):
        downloaded(recipe(tmp_path, base=str(tmp_path)), tmp_path, said.append)
    assert not hub.weights_read_whole()
    found = downloaded(recipe(tmp_path), tmp_path, said.append)
    assert said[-2].startswith("downloading acme/long: 0.0")
    assert hub.weights_read_whole()
    for name in ("long", "short"):
        got, own = (getattr(found.parents, name), ROOT / "recipes/tiny" / name)
        assert (got / "model.safetensors").read_bytes() == (own / "model.safetensors").read_bytes()
        assert readable_name(got) == f"acme/{name}"
    hub.asked.clear()
    said.clear()
    assert downloaded(recipe(tmp_path), tmp_path, said.append) == found
    go_to("http://127.0.0.1:9", monkeypatch)
    assert downloaded(recipe(tmp_path), tmp_path, said.append) == found
    assert not said
    assert not hub.weights_read_whole()


def test_no_room_for_a_download_is_said_before_it(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rpam_lite.checkpoint.hub.shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(RpamError, match=r"cache: \d+ bytes are missing to download acme/long; free some"):
        fetch("acme/long", missing_bytes("acme/long"), print)
    assert not hub.weights_read_whole()


@pytest.mark.parametrize(
    ("hub_id", "expected"),
    [
        ("acme/other", "acme/other: no such folder beside the recipe, and no such model on the hub"),
        ("acme/long@v9", "acme/long@v9: the model is on the hub, but not this revision"),
        ("acme/closed", "acme/closed: its owner asks for consent; accept it on huggingface.co/acme/closed"),
    ],
)
def test_what_the_hub_refuses_is_said_in_one_sentence(hub: Hub, tmp_path: Path, hub_id: str, expected: str) -> None:
    (finding,) = findings_of(recipe(tmp_path, long=hub_id), tmp_path)
    assert (finding.level, finding.code) == ("ERROR", "hub")
    assert finding.message.startswith(expected)
    with pytest.raises(RpamError, match=re.escape(expected)):
        downloaded(recipe(tmp_path, long=hub_id), tmp_path, print)


def test_a_full_disk_is_not_told_as_a_missing_network(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: Path, found: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(file))

    monkeypatch.setattr("rpam_lite.checkpoint.hub._write_hollow", full)
    with pytest.raises(OSError, match="No space left") as caught:
        fetch_headers("acme/long", tmp_path)
    assert caught.value.errno == errno.ENOSPC


def test_without_a_network(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_to("http://127.0.0.1:9", monkeypatch)
    findings = findings_of(recipe(tmp_path), tmp_path)
    why = "no such folder beside the recipe, and the hub can't be reached"
    assert [f.message.split(" (")[0] for f in findings] == [f"acme/long: {why}", f"acme/short: {why}"]
    with pytest.raises(RpamError, match="acme/long: no such folder beside the recipe, and the hub can't be reached"):
        downloaded(recipe(tmp_path), tmp_path, print)
