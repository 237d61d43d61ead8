"""Which questions are for training, which for calibration, which for evaluation.

The splits are disjoint by content: a hash of the problem itself decides where it belongs, whatever
words, names or seed dress it.
"""

from __future__ import annotations

import hashlib
from typing import Literal

Split = Literal["train", "calibration", "evaluation"]
LEVELS = range(1, 9)
# Of ten hash buckets, which belong to which split.
_BUCKETS: dict[int, Split] = {0: "evaluation", 1: "calibration"}


def split_of_text(problem: str) -> Split:
    """The one split of a problem, given in one canonical form."""
    return _BUCKETS.get(hashlib.sha256(problem.encode()).digest()[0] % 10, "train")
