"""Quantized models: make them, run them, measure them.

from quant import evaluate, load
model = load("merged-q4_k_m.gguf", context=8192)
result = evaluate(model, tasks=["gsm8k", "math500"], samples=4, limit=200)
"""

from quant.engines import Sampling
from quant.evaluating import evaluate
from quant.evaluation import Evaluation, read_evaluation
from quant.models import load

__all__ = ["Evaluation", "Sampling", "evaluate", "load", "read_evaluation"]
