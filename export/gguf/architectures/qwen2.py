"""Qwen2 and Qwen2.5: NEOX rope as in Hugging Face, biases on q, k and v."""

import gguf

from export.gguf.architecture import Architecture

ARCHITECTURE = Architecture("qwen2", gguf.MODEL_ARCH.QWEN2)
