"""Qwen3: NEOX rope as in Hugging Face, norms on q and k, heads wider than hidden size / heads."""

import gguf

from export.gguf.architecture import Architecture

ARCHITECTURE = Architecture("qwen3", gguf.MODEL_ARCH.QWEN3, needs_head_dim=True)
