"""Llama: llama.cpp rotates neighbouring values, so that q and k leave Hugging Face's half-and-half layout."""

import gguf

from export.gguf.architecture import Architecture

_Q, _K = "num_attention_heads", "num_key_value_heads"
ARCHITECTURE = Architecture(
    "llama",
    gguf.MODEL_ARCH.LLAMA,
    ropes=frozenset({"default", "linear", "yarn", "llama3"}),
    rotary_heads=(("q_proj.weight", _Q), ("q_proj.bias", _Q), ("k_proj.weight", _K), ("k_proj.bias", _K)),
    vocabulary_keys=True,
)
