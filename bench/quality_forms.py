"""What bench.quality measures: the methods, as changes to the shipped recipe, and the short and the full form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bench.curve import CURVE
from quant.engines import Sampling

OURS = "dial"

Changes = dict[str, dict[str, Any]]
_DIAL = {"prices": [300], "budgets": [0.9, 0.8, 0.7, 0.6, 0.5, 0.4], "max_tokens_share": 0.8}
# Changes to the recipe by method. The first is the shipped recipe's dial with one budget more; where no dial is named
# there is none.
QUICK: dict[str, Changes] = {
    OURS: {"dial": _DIAL},
    "adaptive, no dial": {},
    "task arithmetic": {"merge": {"method": "task_arithmetic"}},
    "TIES": {"merge": {"method": "ties"}},
    "DARE-TIES": {"merge": {"method": "dare_ties"}},
    "AIM": {"merge": {"method": "aim"}},
    "ACM": {"merge": {"method": "acm"}},
    "Sens": {"merge": {"method": "sens"}},
    "ReACT fold": {"merge": {"method": "react"}},
    "QA-Merging": {"merge": {"method": "qa_merging"}},
}
SLOW: dict[str, Changes] = {
    "dial by fit": {"dial": {"by": "fit", "prices": [20, 50, 100, 200, 300], "max_tokens_share": 0.85}},
    # How much the fit of lambda, and one a layer, add to the rows.
    "rows on a fitted scalar": {"dial": _DIAL, "fit": {"granularity": "scalar"}},
    "rows on scalar 0.5": {"dial": _DIAL, "fit": {"granularity": "scalar", "lower": 0.5, "upper": 0.5}},
    "AdaMerging": {"fit": {"preset": "adamerging"}},
    "adaptive, a block": {"fit": {"granularity": "block"}},
    "adaptive, a matrix": {"fit": {"granularity": "matrix"}},
    "adaptive, low rank": {"fit": {"granularity": "low_rank"}},
    "adaptive, a row": {"fit": {"granularity": "row"}},
    "paper": {"fit": {"preset": "paper"}},
    "ProDistill (no contrast)": {"fit": {"preset": "paper", "contrastive_weight": 0.0}},
    "release": {"fit": {"preset": "release", "release": {"prompt_tokens": 128, "epochs": 50}}},
    "FIM": {"merge": {"method": "fim"}},
    "WUDI": {"merge": {"method": "wudi"}},
}


@dataclass(frozen=True)
class Form:
    """How much is measured.

    Attributes:
        per_level: Held-out questions a level.
        curve: Lambdas of the interpolations.
        finer: How many more may be put where neighbours lie far apart.
        methods: Changes to the recipe by method.
        beside: Whether interpolations of some tensors alone, and rules between both models, are measured too.
        samplings: Ways of sampling by name, each with its answers a question.
        quantized: Whether every method is measured quantized too, and not ours alone.
    """

    per_level: int
    curve: tuple[float, ...]
    finer: int
    methods: dict[str, Changes]
    samplings: dict[str, tuple[Sampling, int]]
    beside: bool = True
    quantized: bool = False


GREEDY = {"greedy": (Sampling(0.0), 1)}
SAMPLED = {"sampled": (Sampling(0.6, 0.95, 20, seed=1), 1)}
SHORT_FORM = Form(50, CURVE, 6, QUICK, GREEDY)
FULL_FORM = Form(200, CURVE, 10, QUICK | SLOW, GREEDY | SAMPLED)
