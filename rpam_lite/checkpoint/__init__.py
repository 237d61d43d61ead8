"""Checkpoint bytes: safetensors in and out, tokenizer and config files. No other room touches them."""
