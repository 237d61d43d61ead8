"""Names of the files that more than one part of the program reads, relative to a run's folder.

What a single stage writes and reads again is named there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rpam_lite.recipe import Recipe

# In the folder of every stage.
MANIFEST = "manifest.json"

LOCK = ".lock"

# In `fit/`, and in the folder of every member of the dial.
COEFFICIENTS_FILE = "coefficients.json"
FIT_LOG_FILE = "fit.json"

QUESTION_SETS = "questions/sets.json"
FINDINGS = "check/findings.json"
PATTERNS = "label/patterns.jsonl"
COEFFICIENTS = f"fit/{COEFFICIENTS_FILE}"
COEFFICIENTS_PLOT = "fit/coefficients.png"
FIT_LOG = f"fit/{FIT_LOG_FILE}"
FRONTIER = "fit/frontier.json"
VERIFIED = "merge/verify.json"
DIVERGENCE = "divergence/divergence.json"
EVALUATION = "eval/evaluation.json"
USE = "report/use.md"


def exported_name(recipe: Recipe) -> str:
    """The merge as an unquantized GGUF file."""
    return f"export/{recipe.name}-{recipe.export.type.lower()}.gguf"


def quantized_name(recipe: Recipe, type_name: str) -> str:
    """The merge, quantized."""
    return f"quantize/{recipe.name}-{type_name.lower()}.gguf"
