"""Quantized models: make them, run them, measure them."""
