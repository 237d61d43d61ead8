"""llama.cpp's C library: its log kept for error messages, models, contexts, tokens. No engine."""

from __future__ import annotations

import ctypes
import signal
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import llama_cpp

from rpam_lite.errors import RpamError

_log_tail: deque[str] = deque(maxlen=20)


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def _keep_log(level: int, text: bytes, user_data: ctypes.c_void_p) -> None:
    """llama.cpp writes to stderr otherwise; the last lines are kept for error messages."""
    _log_tail.append(text.decode("utf-8", errors="replace"))


def last_log_line() -> str:
    """What llama.cpp said last, which is most often why something failed."""
    lines = [line.strip() for line in "".join(_log_tail).splitlines() if line.strip()]
    return lines[-1] if lines else "llama.cpp gave no reason"


@contextmanager
def _interrupts_wait() -> Iterator[None]:
    """Let Ctrl-C wait until llama.cpp returns: raised inside the log function it would be dropped without a word."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        raise KeyboardInterrupt


def load_model(path: Path) -> Any:
    """llama.cpp's model of a GGUF file, to be freed.

    Raises:
        RpamError: The file is missing or llama.cpp can't load it.
    """
    if not path.is_file():
        raise RpamError(f"{path}: no such GGUF file; check the path.")
    llama_cpp.llama_log_set(_keep_log, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    _log_tail.clear()
    with _interrupts_wait():
        model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
    if model is None:
        raise RpamError(f"{path}: llama.cpp can't load it ({last_log_line()}); write or download the file again.")
    return model


def new_context(model: Any, path: Path, advice: str, **settings: Any) -> Any:
    """llama.cpp's context of a model, to be freed.

    Args:
        model: What `load_model` gave.
        path: Its file, for the error.
        advice: What to do where there is no memory for it.
        **settings: By llama.cpp's own names, such as n_ctx.

    Raises:
        RpamError: It can't be made (memory).
    """
    params = llama_cpp.llama_context_default_params()
    for name, value in settings.items():
        setattr(params, name, value)
    with _interrupts_wait():
        context = llama_cpp.llama_init_from_model(model, params)
    if context is None:
        raise RpamError(
            f"{path}: llama.cpp can't make a context of {params.n_ctx} tokens ({last_log_line()}); {advice}."
        )
    return context


def metadata(model: Any, key: str) -> str | None:
    """One metadata value of a model's file as text; None if it has no such key."""
    length = llama_cpp.llama_model_meta_val_str(model, key.encode(), None, 0)
    if length < 0:
        return None
    buffer = ctypes.create_string_buffer(length + 1)
    llama_cpp.llama_model_meta_val_str(model, key.encode(), buffer, length + 1)
    return buffer.value.decode("utf-8")


def tokenize(vocabulary: Any, text: str) -> tuple[int, ...]:
    """Token ids of a text, markers such as <think> parsed, nothing added."""
    data = text.encode("utf-8")
    ids = (llama_cpp.llama_token * (len(data) + 8))()
    count = llama_cpp.llama_tokenize(vocabulary, data, len(data), ids, len(ids), False, True)
    return tuple(ids[:count])


def token_bytes(vocabulary: Any, token: int) -> bytes:
    """Text of one token."""
    # With too small a buffer it gives the negative of the length that is needed.
    length = abs(llama_cpp.llama_token_to_piece(vocabulary, token, None, 0, 0, True))
    buffer = ctypes.create_string_buffer(max(1, length))
    llama_cpp.llama_token_to_piece(vocabulary, token, buffer, length, 0, True)
    return buffer.raw[:length]
