"""GGUF, as llama.cpp reads it, written with the `gguf` package from safetensors and tokenizer.json."""
