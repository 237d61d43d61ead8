"""Next-token logits of a model on given token ids, as a stream: a GGUF file, or a Hugging Face folder.

A GGUF file as exactly as llama.cpp computes (F32 cache, no flash attention), or as its tools do by default.
Logits of a whole trace are never held: 4,096 tokens of a 151,936-token vocabulary would take 2.3 GiB.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import llama_cpp
import numpy as np

from quant.engines.llama_cpp import LlamaCppEngine
from quant.engines.passes import CHUNK, open_reader
from rpam_lite.checkpoint.loading import load_folder

_F32 = 0  # GGML_TYPE_F32


@dataclass(frozen=True)
class LogitsModel:
    """Anything that gives logits.

    Attributes:
        name: As errors call it.
        vocabulary_size: Tokens, padding included.
        logits: Of token ids and the first position wanted: float32 [positions, vocabulary] up to the last position,
            in order, cut at multiples of CHUNK, valid until the next ones are asked for.
    """

    name: str
    vocabulary_size: int
    logits: Callable[[Sequence[int], int], Iterator[np.ndarray]]


@contextmanager
def open_model(path: Path, threads: int = 2, exact: bool = True) -> Iterator[LogitsModel]:
    """A GGUF file through llama.cpp, or a folder through transformers in float32.

    Args:
        path: Which.
        threads: CPU threads, of a file.
        exact: Of a file, see `sequence_logits`.

    Raises:
        RpamError: It can't be loaded.
    """
    if path.is_dir():
        yield folder_model(path)
        return
    with LlamaCppEngine(path, threads=threads) as engine:
        yield LogitsModel(str(path), engine.vocabulary_size, lambda t, first: sequence_logits(engine, t, first, exact))


def folder_model(folder: Path) -> LogitsModel:
    """A Hugging Face folder through transformers, in float32 on the CPU.

    Args:
        folder: Config and weights.

    Raises:
        RpamError: transformers can't load it.
    """
    import torch
    from transformers import AutoModelForCausalLM, DynamicCache

    model = load_folder(AutoModelForCausalLM, folder, dtype=torch.float32).eval()

    def logits(tokens: Sequence[int], first: int) -> Iterator[np.ndarray]:
        cache = DynamicCache()
        for start in range(0, len(tokens), CHUNK):
            part = torch.tensor([list(tokens[start : start + CHUNK])])
            wanted = start + part.shape[1] - max(first, start)
            with torch.inference_mode():
                # 0 would ask for all of them.
                found = model(part, past_key_values=cache, use_cache=True, logits_to_keep=max(wanted, 1)).logits[0]
            if wanted > 0:
                yield found.numpy()

    return LogitsModel(str(folder), int(model.config.get_text_config().vocab_size), logits)


def sequence_logits(
    engine: LlamaCppEngine, tokens: Sequence[int], first: int = 0, exact: bool = True
) -> Iterator[np.ndarray]:
    """Next-token logits of one sequence, some positions at a time.

    Args:
        engine: The loaded file.
        tokens: Token ids.
        first: Position from which logits are wanted; those before are read, and their logits not computed.
        exact: Compute with an F32 cache and without flash attention; else as llama.cpp's tools do by default, with an
            F16 cache and, where it can, flash attention.

    Yields:
        float32 [positions, vocabulary], in order, valid until the next ones are asked for.

    Raises:
        RpamError: llama.cpp can't make the context (memory), or fails to decode.
    """
    settings = (
        {"type_k": _F32, "type_v": _F32, "flash_attn_type": llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED} if exact else {}
    )
    with open_reader(engine, len(tokens), **settings) as reader:
        for wanted in reader.read(tokens, first):
            if wanted:
                values = llama_cpp.llama_get_logits(reader.context)
                size = wanted * engine.vocabulary_size
                found = np.ctypeslib.as_array(ctypes.cast(values, ctypes.POINTER(ctypes.c_float)), (size,))
                yield found.reshape(wanted, engine.vocabulary_size)
