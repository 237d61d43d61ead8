"""`load`: a GGUF file, a Hugging Face folder or a server, as an engine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from quant.engines import Engine
from rpam_lite.checkpoint.files import is_run_folder
from rpam_lite.errors import RpamError

Bits = Literal[4, 8, 16, 32]


def load(
    model: str | Path,
    *,
    context: int | None = None,
    bits: Bits = 16,
    parallel: int = 16,
    threads: int | None = None,
    tokenizer: str | Path | None = None,
    served_model: str = "",
    timeout: float = 600,
) -> Engine:
    """Open a model to be measured.

    Example:
        >>> model = load("merged-q4_k_m.gguf", context=8192)
        >>> model = load("merged", bits=4)
        >>> model = load("http://localhost:8080/v1", tokenizer="merged")

    Args:
        model: A GGUF file (llama.cpp), a Hugging Face folder (transformers), or the address of an OpenAI-compatible
            server.
        context: Of a GGUF file: tokens of prompt and answer together; as many as are asked for if None.
        bits: Of a folder: 16, 32, or through bitsandbytes 8 (int8) or 4 (nf4).
        parallel: Sequences side by side; of a server, requests at a time.
        threads: Of a GGUF file: CPU threads; all cores if None.
        tokenizer: Of a server: a folder whose tokenizer and chat template make the prompts; the server's own if None.
        served_model: Of a server: the model's name there; its only one if empty.
        timeout: Of a server: seconds that one answer may take.

    Returns:
        The engine; close it when done.

    Raises:
        RpamError: There is no such model, or it can't be loaded.
    """
    text = str(model)
    if text.startswith(("http://", "https://")):
        from quant.engines.http import HttpEngine

        folder = None if tokenizer is None else Path(tokenizer)
        return HttpEngine(text, served_model, folder, parallel=parallel, timeout=timeout)
    path = Path(model)
    if is_run_folder(path):
        files = sorted(str(file) for file in path.glob("*/*.gguf"))
        raise RpamError(
            f"{path}: is a run's folder, not a model; name one of its files: {', '.join(files) or 'none yet'}."
        )
    if path.is_dir():
        from quant.engines.transformers import TransformersEngine

        return TransformersEngine(path, bits, batch=parallel)
    if not path.exists():
        raise RpamError(f"{path}: no such model; give a GGUF file, a Hugging Face folder or the address of a server.")
    from quant.engines.llama_cpp import LlamaCppEngine

    return LlamaCppEngine(path, parallel, threads or os.cpu_count() or 1, context)
