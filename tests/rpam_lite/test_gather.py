"""What the report gathers of a run's files."""

from __future__ import annotations

import json
from pathlib import Path

from rpam_lite.report.gather import _labels


def test_labels_are_counted_whatever_line_breaks_a_question_holds(tmp_path: Path) -> None:
    rows = [{"question": "a\u2028b\x85c", "label": "long"}, {"question": "d", "label": None}]
    file = tmp_path / "patterns.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    assert _labels(file) == {"long": 1, "short": 0, "dropped": 1}
    assert _labels(tmp_path / "none.jsonl") == {}
