"""Ollama: a Modelfile for a GGUF file, and a client that creates the model on a running server and checks it.

The chat template is the file's own: from 0.30 on Ollama renders it as llama.cpp does. Older servers know
Go templates only; they are refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from rpam_lite.checkpoint.think import THINK_CLOSE, names_block
from rpam_lite.errors import RpamError

REQUIRES = (0, 30, 0)
HOST = "http://localhost:11434"
# End-of-turn markers that models of these families use.
_STOPS = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>", "<｜end▁of▁sentence｜>", "</s>")
_READ = 1 << 20


@dataclass(frozen=True)
class ModelSettings:
    """What Ollama is told beside the weights.

    Attributes:
        parameters: Ollama's own names: num_ctx, temperature, top_p, top_k.
        stops: Texts that end an answer.
        system: System prompt; none where empty.
        license: Text of the licence; none where empty.
    """

    parameters: dict[str, int | float]
    stops: tuple[str, ...]
    system: str = ""
    license: str = ""


def stop_tokens(tokens: Sequence[str], end: str | None) -> tuple[str, ...]:
    """Texts that end an answer: the tokenizer's own end token, and the usual markers that it has.

    Args:
        tokens: All token strings.
        end: The end token, if the tokenizer names one.
    """
    known = set(tokens)
    return tuple(dict.fromkeys([*([end] if end else []), *(stop for stop in _STOPS if stop in known)]))


def thinks(template: str) -> bool:
    """Whether Ollama would call a chat template one that thinks, by its own rule."""
    splits = f"content.split('{THINK_CLOSE}')" in template and "reasoning_content" not in template
    return names_block(template) or splits


def modelfile(file: str, settings: ModelSettings) -> str:
    """The Modelfile.

    Args:
        file: The GGUF file, relative to the Modelfile.
        settings: All else.
    """
    lines = [f"FROM ./{file}", f"REQUIRES {'.'.join(map(str, REQUIRES))}"]
    lines += [
        f"PARAMETER {name} {value:g}" if isinstance(value, float) else f"PARAMETER {name} {value}"
        for name, value in settings.parameters.items()
    ]
    lines += [f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in settings.stops]
    if settings.system:
        lines.append(f'SYSTEM """{_block(settings.system, "ollama.system")}"""')
    if settings.license:
        lines.append(f'LICENSE """{_block(settings.license, "the licence")}"""')
    return "\n".join(lines) + "\n"


def _block(text: str, what: str) -> str:
    if '"""' in text:
        raise RpamError(f'{what}: holds """, which would end it early in a Modelfile; take it out.')
    return text


class OllamaServer:
    """A running Ollama server.

    Args:
        host: Its address.

    Raises:
        RpamError: It does not answer, or is too old.
    """

    def __init__(self, host: str = HOST) -> None:
        self.host = host
        self._client = httpx.Client(base_url=host, timeout=httpx.Timeout(30, read=600, write=600))
        told = self._call("GET", "/api/version").get("version", "")
        if _version(told) < REQUIRES:
            self._client.close()
            raise RpamError(
                f"{host}: is Ollama {told or 'of an unknown version'}; it must be {'.'.join(map(str, REQUIRES))} or "
                "newer, since older ones do not read the chat template of a GGUF file."
            )

    def __enter__(self) -> OllamaServer:
        return self

    def __exit__(self, *exc: object) -> None:
        self._client.close()

    def create(self, name: str, file: Path, settings: ModelSettings, say: Callable[[str], None]) -> None:
        """Upload the file if the server lacks it, and create the model.

        Raises:
            RpamError: The server refuses, or breaks off.
        """
        digest = _digest(file)
        if not self._has(digest):
            say(f"uploading {file.name} ({file.stat().st_size / 1e9:.2f} GB)")
            self._call("POST", f"/api/blobs/{digest}", content=_pieces(file))
        asked: dict[str, Any] = {
            "model": name,
            "files": {file.name: digest},
            "parameters": {**settings.parameters, "stop": list(settings.stops)},
            **({"system": settings.system} if settings.system else {}),
            **({"license": settings.license} if settings.license else {}),
        }
        last = ""
        for told in self._stream("/api/create", asked):
            if "error" in told:
                raise RpamError(
                    f"{self.host}: refused to create {name} ({told['error']}); update Ollama, or check the file."
                )
            last = str(told.get("status", last))
        if last != "success":
            raise RpamError(
                f"{self.host}: broke off while it created {name} (last: {last or 'nothing'}); run the command again."
            )

    def check(self, name: str, settings: ModelSettings, thinking: bool) -> list[str]:
        """What the server says of the model, against what it must say.

        Returns:
            Its capabilities.

        Raises:
            RpamError: A capability or a parameter is missing.
        """
        shown = self._call("POST", "/api/show", json={"model": name})
        capabilities = [str(c) for c in shown.get("capabilities", [])]
        for needed in ["completion", *(["thinking"] if thinking else [])]:
            if needed not in capabilities:
                raise RpamError(
                    f"{self.host}: {name} has no capability {needed!r} there (it has {capabilities}); update Ollama."
                )
        lines = [line.strip().partition(" ") for line in str(shown.get("parameters", "")).splitlines()]
        parameters = {name: value.strip() for name, _, value in lines}
        wanted = settings.parameters.get("num_ctx")
        if wanted is not None and parameters.get("num_ctx") != str(wanted):
            raise RpamError(
                f"{self.host}: {name} has num_ctx {parameters.get('num_ctx')!r} there, not {wanted}; update Ollama."
            )
        return capabilities

    def _has(self, digest: str) -> bool:
        try:
            return self._client.head(f"/api/blobs/{digest}").status_code == 200
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None

    def _call(self, method: str, path: str, **arguments: Any) -> dict[str, Any]:
        try:
            response = self._client.request(method, path, **arguments)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None
        if response.is_error:
            raise RpamError(
                f"{self.host}: {path} answered {response.status_code} ({response.text[:200]}); "
                "is that an Ollama server, and a recent one?"
            )
        try:
            told = response.json() if response.content else {}
        except ValueError:
            raise RpamError(f"{self.host}: {path} did not answer in JSON; is that an Ollama server?") from None
        return told if isinstance(told, dict) else {}

    def _stream(self, path: str, asked: dict[str, Any]) -> Iterator[dict[str, Any]]:
        try:
            with self._client.stream("POST", path, json=asked) as response:
                if response.is_error:
                    text = response.read().decode("utf-8", errors="replace")
                    raise RpamError(
                        f"{self.host}: {path} answered {response.status_code} ({text[:200]}); "
                        "is that an Ollama server, and a recent one?"
                    )
                for line in response.iter_lines():
                    if line.strip():
                        yield json.loads(line)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None

    def _unreachable(self, error: httpx.HTTPError) -> RpamError:
        return RpamError(f"{self.host}: no Ollama server answers there ({error}); start it with `ollama serve`.")


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()}"


def _pieces(file: Path) -> Iterator[bytes]:
    with file.open("rb") as stream:
        while piece := stream.read(_READ):
            yield piece


def _version(text: str) -> tuple[int, ...]:
    """0.30.1-rc2 as (0, 30, 1); a development build, 0.0.0, counts as new."""
    numbers = tuple(int(part) for part in text.split("-")[0].split(".") if part.isdigit())
    return (999,) if numbers == (0, 0, 0) else numbers
