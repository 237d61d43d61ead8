"""A model behind any OpenAI-compatible server: vLLM, SGLang, llama-server, llama-cpp-python, Ollama, hosted ones."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx

from quant.engines.base import Completion, Request
from quant.engines.chat import ChatTokenizer
from quant.engines.http_answer import ChatAnswer, Model, Models, TextAnswer, to_completion
from quant.engines.http_client import RefusedError, Server, in_background, side_by_side
from rpam_lite.errors import RpamError

KEY_VARIABLE = "OPENAI_API_KEY"

# Servers add sampling settings of their own where a request is silent: llama-cpp-python a repetition penalty, vLLM
# what the model's generation_config.json recommends. By `owned_by` of their models: how to say that none is wanted.
_PENALTIES_OFF = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
_LLAMA_OFF = {"top_k": 0, "min_p": 0.0, "repeat_penalty": 1.0}
_NOTHING_ADDED: dict[str | None, dict[str, float]] = {
    "vllm": _PENALTIES_OFF,
    "sglang": _PENALTIES_OFF,
    "llamacpp": _LLAMA_OFF,
    "me": _LLAMA_OFF,
}


class HttpEngine:
    """Runs what a server serves.

    With a tokenizer, or with requests that bring token ids, prompts are made here and go to /v1/completions: as
    token ids, or as text to a server that refuses ids. Without, questions go to /v1/chat/completions, and the
    server's own template makes the prompt.

    Args:
        url: Of the server, with or without /v1.
        model: Which of its models; by default its first.
        tokenizer: Hugging Face folder of the served model's tokenizer and chat template.
        api_key: Sent as bearer token; by default the environment variable OPENAI_API_KEY, if there is one.
        parallel: Requests that are under way side by side.
        timeout: Seconds for one answer.
        retries: Further tries after one that failed, on each request.

    Raises:
        RpamError: The url is none, no server answers there, or it has no such model.
    """

    def __init__(
        self,
        url: str,
        model: str = "",
        tokenizer: Path | None = None,
        api_key: str | None = None,
        parallel: int = 16,
        timeout: float = 600,
        retries: int = 5,
    ) -> None:
        if parallel < 1 or retries < 0 or timeout <= 0:
            raise RpamError(
                f"parallel={parallel}, timeout={timeout:g}, retries={retries}: the first must be at least 1, the "
                "second more than 0 seconds, the third not negative."
            )
        self.parallel = parallel
        self._tokenizer = ChatTokenizer(tokenizer) if tokenizer else None
        self._server = Server(_base(url), _headers(api_key), timeout, retries)
        self._ids_refused = False
        self._model = self._find_model(model)
        self.name = self._model.id
        if self._tokenizer and self._model.owned_by == "library":
            raise RpamError(
                f"{self._server.url}: is an Ollama server, which puts its own template around every prompt, so prompts "
                "made with a tokenizer would be wrapped twice; leave `tokenizer` out."
            )

    def close(self) -> None:
        """Nothing is held: connections last as long as `generate`."""

    def __enter__(self) -> HttpEngine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def identity(self) -> str:
        """Hash of the url and of the model's name there: a server does not tell when it gets other weights."""
        return hashlib.sha256(f"{self._server.url} {self.name}".encode()).hexdigest()[:16]

    @property
    def opens_think(self) -> bool:
        """Whether the tokenizer's chat template ends in an open think block; a server's own is not known."""
        return self._tokenizer is not None and self._tokenizer.opens_think

    def chat_prompt(self, question: str) -> tuple[int, ...]:
        """Token ids of one user turn in the tokenizer's chat template; empty where only the server knows it.

        Raises:
            RpamError: The tokenizer folder carries no chat template, or the template fails.
        """
        return self._tokenizer.prompt(question) if self._tokenizer else ()

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """Complete all requests, yielding each as it ends; the rest is cancelled when the iterator is closed.

        Raises:
            RpamError: The server refuses a request, or gives no usable answer after all tries.
        """
        if empty := next((r for r in requests if not r.prompt and not r.question), None):
            raise RpamError(f"request {empty.key!r}: has neither prompt tokens nor a question; give it one of them.")

        async def work(hand_over: Callable[[Completion], None]) -> None:
            async with self._server.connect() as client:

                async def complete(request: Request) -> None:
                    hand_over(await self._complete(client, request))

                await side_by_side(requests, complete, self.parallel)

        yield from in_background(work)

    async def _complete(self, client: httpx.AsyncClient, request: Request) -> Completion:
        if not request.prompt:
            return await self._chat(client, request)
        if not self._ids_refused:
            try:
                return await self._continue(client, request, list(request.prompt))
            except RefusedError as error:
                if error.status not in (400, 422, 500) or self._tokenizer is None:
                    raise
        assert self._tokenizer is not None
        completion = await self._continue(client, request, self._tokenizer.as_text(request.prompt))
        self._ids_refused = True  # known only now: what was refused could have been anything in the request
        return completion

    async def _continue(self, client: httpx.AsyncClient, request: Request, prompt: list[int] | str) -> Completion:
        body = self._settings(request) | {"prompt": prompt} | ({"logprobs": 1} if request.logprobs else {})
        if self._tokenizer and self._model.owned_by == "vllm":
            body["return_token_ids"] = True
        answer, seconds = await self._server.ask(client, "/completions", TextAnswer, body)
        return to_completion(answer, request, seconds, self._tokenizer, self._server.url)

    async def _chat(self, client: httpx.AsyncClient, request: Request) -> Completion:
        body = self._settings(request) | {"messages": [{"role": "user", "content": request.question}]}
        body |= {"logprobs": True} if request.logprobs else {}
        answer, seconds = await self._server.ask(client, "/chat/completions", ChatAnswer, body)
        return to_completion(answer, request, seconds, self._tokenizer, self._server.url)

    def _settings(self, request: Request) -> dict[str, Any]:
        sampling = request.sampling
        return {
            "model": self.name,
            "max_tokens": request.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": sampling.seed,
            **_NOTHING_ADDED.get(self._model.owned_by, {}),
            **({"top_k": sampling.top_k} if sampling.top_k > 0 else {}),
        }

    def _find_model(self, name: str) -> Model:
        async def work(hand_over: Callable[[Models], None]) -> None:
            async with self._server.connect() as client:
                hand_over((await self._server.ask(client, "/models", Models))[0])

        (served,) = in_background(work)
        found = next((m for m in served.data if m.id == name or not name), None)
        if found is None:
            there = ", ".join(m.id for m in served.data) or "none"
            raise RpamError(f"{self._server.url}: serves no model {name!r}; it has {there}: choose one of these.")
        return found


def _base(url: str) -> str:
    """The url up to and including /v1.

    Raises:
        RpamError: It is no address of a web server.
    """
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        parsed = httpx.URL()
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise RpamError(f"{url!r}: is no server's url; give one such as http://localhost:8000/v1.")
    return url.rstrip("/").removesuffix("/v1") + "/v1"


def _headers(api_key: str | None) -> dict[str, str]:
    """With the key, if there is one."""
    key = (api_key if api_key is not None else os.environ.get(KEY_VARIABLE, "")).strip()
    if not (key.isascii() and (key.isprintable() or not key)):
        raise RpamError(f"api_key (or {KEY_VARIABLE}): holds characters that no key has; copy it again.")
    return {"Authorization": f"Bearer {key}"} if key else {}
