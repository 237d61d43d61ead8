"""The token that opens Long's answers: what a decision row is fitted to choose."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rpam_lite.errors import RpamError

# Of Long's answers at least, and of Short's at most one less this share, must begin with the opening token.
OPENED = 0.9


def opening_token(rows: Sequence[Mapping[str, Any]]) -> int:
    """The token that begins Long's answers and not Short's.

    Raises:
        RpamError: There is none.
    """
    first: dict[str, Counter[int]] = {
        parent: Counter(row[f"response_{parent}"][0] for row in rows if row[f"response_{parent}"])
        for parent in ("long", "short")
    }
    total = {parent: max(1, counts.total()) for parent, counts in first.items()}
    if not first["long"]:
        raise RpamError("patterns.jsonl: holds no answer of Long's, so that no token opens them; add harder questions.")
    ((token, count),) = first["long"].most_common(1)
    of_long, of_short = count / total["long"], first["short"][token] / total["short"]
    if of_long < OPENED or of_short > 1 - OPENED:
        raise RpamError(
            f"patterns.jsonl: token {token} begins {100 * of_long:.0f} % of Long's answers and {100 * of_short:.0f} % "
            f"of Short's, so that no first token tells them apart, as `dial.by: decision` needs (at least "
            f"{100 * OPENED:.0f} and at most {100 - 100 * OPENED:.0f} %). If the prompt itself opens the think block, "
            "set `merge.think_prefill: drop`; else `dial.by: fit`, with `prices`."
        )
    return token
