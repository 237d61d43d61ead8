"""Hidden states of a prompt's last token: what a probe reads to foresee how a model will answer.

Ada-R1 (arXiv 2504.21659, appendix C) finds the mode of the answer decided there. Self-Route (arXiv 2505.20664) reads
the states of all layers; llama.cpp gives those of the last one after the final norm, so that is what is read here,
from a GGUF file as from a folder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quant.engines.llama_cpp import LlamaCppEngine
from rpam_lite.checkpoint.loading import load_folder
from rpam_lite.errors import RpamError

Singles = NDArray[np.float32]
Prompts = Sequence[tuple[int, ...]]
# Prompts to float32 [prompts, hidden].
States = Callable[[Prompts], Singles]


def last_hidden_states(engine: LlamaCppEngine, prompts: Prompts) -> Singles:
    """Hidden state of each prompt's last token after the final norm, as llama.cpp computes it.

    Nothing is generated; each prompt is read once.

    Args:
        engine: The loaded file.
        prompts: Token ids.

    Returns:
        float32 [prompts, hidden].

    Raises:
        RpamError: A prompt is empty, llama.cpp can't make the context (memory), or fails to decode.
    """
    import llama_cpp

    from quant.engines.passes import open_reader

    _require_tokens(prompts, str(engine.path))
    states = np.empty((len(prompts), llama_cpp.llama_model_n_embd(engine.handle)), np.float32)
    settings = {"embeddings": True, "pooling_type": llama_cpp.LLAMA_POOLING_TYPE_NONE}
    with open_reader(engine, max(len(p) for p in prompts), **settings) as reader:
        for state, prompt in zip(states, prompts, strict=True):
            *_, last = reader.read(prompt)
            state[:] = np.ctypeslib.as_array(llama_cpp.llama_get_embeddings_ith(reader.context, last - 1), state.shape)
    return states


def folder_states(folder: Path, dtype: str = "float32", device: str = "cpu") -> States:
    """`last_hidden_states` of a Hugging Face folder, loaded once.

    Args:
        folder: Config and weights.
        dtype: Of the weights and of the arithmetic, as torch names it; states come as float32.
        device: As torch names it.

    Raises:
        RpamError: transformers can't load it; later, a prompt is empty.
    """
    import torch
    from transformers import AutoModel

    model = load_folder(AutoModel, folder, dtype=getattr(torch, dtype)).to(device).eval()

    def states(prompts: Prompts) -> Singles:
        _require_tokens(prompts, str(folder))
        rows = []
        for prompt in prompts:
            with torch.inference_mode():
                # The bare model ends with the final norm: this equals hidden_states[-1] of the whole one.
                found = model(torch.tensor([list(prompt)], device=device), use_cache=False).last_hidden_state
            rows.append(found[0, -1].float().cpu().numpy())
        return np.stack(rows)

    return states


def _require_tokens(prompts: Prompts, model: str) -> None:
    if not prompts:
        raise RpamError(f"{model}: there are no prompts to read hidden states of; give at least one.")
    if (number := next((i for i, p in enumerate(prompts) if not p), None)) is not None:
        raise RpamError(f"{model}: prompt {number} has no tokens; make prompts with chat_prompt(question).")
