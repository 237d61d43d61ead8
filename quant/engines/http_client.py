"""Asking an HTTP server: patient with one that is busy, many questions side by side, all stopped at once."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import random
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from rpam_lite.errors import RpamError

FIRST_WAIT_S = 1.0
LIST_TIMEOUT_S = 15.0
LONGEST_WAIT_S = 60.0
_BUSY = (408, 425, 429)
_HINTS = {
    401: "; give its key as the environment variable OPENAI_API_KEY",
    403: "; give a key that may do this as the environment variable OPENAI_API_KEY",
    404: "; check that the url is that of an OpenAI-compatible server",
}

T = TypeVar("T")
Form = TypeVar("Form", bound=BaseModel)


class RefusedError(RpamError):
    """The server will not have the question: asking it again would not help."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class _TryAgainError(Exception):
    """Something that may be better the next time.

    Args:
        what: For the error message, if it is not.
        wait: Seconds that the server asks to wait.
        hint: What the user can do, if it is not.
    """

    def __init__(self, what: str, wait: float = 0.0, hint: str = "look at the server's log") -> None:
        super().__init__(what)
        self.wait, self.hint = wait, hint


@dataclass(frozen=True)
class Server:
    """Where to ask, and how patiently.

    Attributes:
        url: Up to and including /v1.
        headers: Sent with every question.
        timeout: Seconds for one answer.
        retries: Further tries after one that failed.
    """

    url: str
    headers: dict[str, str]
    timeout: float
    retries: int

    @contextlib.asynccontextmanager
    async def connect(self) -> AsyncIterator[httpx.AsyncClient]:
        """A client that keeps its connections."""
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        timeout = httpx.Timeout(self.timeout, connect=min(30.0, self.timeout))
        verify = self.url.startswith("https:")  # reading the certificates takes a while, and plain http has none
        async with httpx.AsyncClient(headers=self.headers, timeout=timeout, limits=limits, verify=verify) as client:
            yield client

    async def ask(
        self, client: httpx.AsyncClient, path: str, form: type[Form], body: dict[str, Any] | None = None
    ) -> tuple[Form, float]:
        """Ask until there is an answer of this form; waits grow twofold, with jitter, up to LONGEST_WAIT_S each.

        Returns:
            The answer, and the seconds that it took in the try that brought it.

        Raises:
            RefusedError: The server says that the question is wrong (4xx).
            RpamError: There is no such answer after all tries.
        """
        tries = 0
        # Who is there is quickly said.
        timeout = self.timeout if body is not None else min(LIST_TIMEOUT_S, self.timeout)
        while True:
            tries += 1
            started = time.perf_counter()
            try:
                async with asyncio.timeout(timeout):
                    return await self._ask_once(client, path, form, body), time.perf_counter() - started
            except TimeoutError:
                failure = _TryAgainError(f"gave no answer within {timeout:g} s", hint="raise `timeout` or ask for less")
            except _TryAgainError as error:
                failure = error
            if tries > self.retries or failure.wait > LONGEST_WAIT_S:
                raise RpamError(
                    f"{self.url}{path}: {failure} (tried {tries} times); {failure.hint}, and run this again: "
                    "what was answered is kept."
                )
            wait = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** (tries - 1)) * random.uniform(0.5, 1.0)
            await asyncio.sleep(max(wait, failure.wait))

    async def _ask_once(
        self, client: httpx.AsyncClient, path: str, form: type[Form], body: dict[str, Any] | None
    ) -> Form:
        try:
            response = await client.request("GET" if body is None else "POST", self.url + path, json=body)
        except httpx.TimeoutException as error:
            raise _TryAgainError(f"gave no answer in time ({type(error).__name__})", hint="raise `timeout`") from None
        except httpx.HTTPError as error:
            reason = str(error) or type(error).__name__
            raise _TryAgainError(f"the connection fails ({reason})", hint="check that the server runs there") from None
        status = response.status_code
        # llama-cpp-python's server says 500 where others say 422.
        wrong = status == 500 and "validation error" in response.text
        if status in _BUSY or (status >= 500 and not wrong):
            wait = _asked_wait(response.headers.get("retry-after", ""))
            asks = f" and asks to wait {wait:.0f} s" if wait else ""
            raise _TryAgainError(f"answered {status}{asks} ({_excerpt(response)})", wait)
        if status != 200:
            message = f"{self.url}{path}: refused with status {status} ({_excerpt(response)}){_HINTS.get(status, '')}."
            raise RefusedError(message, status)
        try:
            return form.model_validate_json(response.content)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"]) or "the whole"
            what = f"answered what is no OpenAI-compatible answer ({place}: {first['msg']}; {_excerpt(response)})"
            raise _TryAgainError(what, hint="check the url") from None


async def side_by_side(items: Sequence[T], work: Callable[[T], Awaitable[None]], parallel: int) -> None:
    """Do `work` on all items, `parallel` at a time; the first error stops the others and is raised."""
    waiting = iter(items)

    async def worker() -> None:
        for item in waiting:
            await work(item)

    tasks = [asyncio.create_task(worker()) for _ in range(min(parallel, len(items)))]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def in_background(work: Callable[[Callable[[T], None]], Coroutine[Any, Any, None]]) -> Iterator[T]:
    """Run `work` in an event loop of its own thread, yielding what it hands over as it comes.

    A thread, since the caller may sit in an event loop (a notebook), and since requests go on while the
    caller is busy. Closing the iterator, or an exception such as Ctrl-C inside it, cancels `work`.

    Args:
        work: Given a function to hand a value over with.
    """
    found: queue.SimpleQueue[Callable[[], T]] = queue.SimpleQueue()
    loop = asyncio.new_event_loop()
    task = loop.create_task(work(lambda value: found.put(lambda: value)))

    def run() -> None:
        try:
            loop.run_until_complete(asyncio.wait([task]))
            loop.run_until_complete(loop.shutdown_default_executor())
        finally:
            loop.close()
            found.put(end)

    def end() -> T:
        task.result()  # raises what ended it
        raise StopIteration

    thread = threading.Thread(target=run, name="http requests", daemon=True)
    thread.start()
    try:
        while True:
            try:
                value = found.get()()
            except StopIteration:
                return
            yield value
    finally:
        with contextlib.suppress(RuntimeError):  # the loop has closed by itself
            loop.call_soon_threadsafe(task.cancel)
        thread.join()


def _asked_wait(header: str) -> float:
    """Seconds of a Retry-After header, which tells seconds or a date; 0 for none."""
    with contextlib.suppress(ValueError):
        return max(0.0, float(header))
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds())
    return 0.0


def _excerpt(response: httpx.Response) -> str:
    return " ".join(response.text.split())[:200] or "empty answer"
