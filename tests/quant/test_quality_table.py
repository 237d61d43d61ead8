"""The benchmark's table: a method that knows when to think stands above the curve, and closes the way to the policy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bench.curve import between_farthest, curve_points, in_order
from bench.quality_table import measured_rows, table, write_picture
from quant.records import Record

LEVELS = [1] * 10 + [2] * 10


def answers(right: list[bool], long: list[bool]) -> list[Record]:
    return [
        Record(
            key=f"{i}/0",
            question=str(i),
            level=level,
            answer="1",
            correct=ok,
            reason="",
            tokens=100 if thinks else 10,
            think_tokens=80 if thinks else 0,
            think_block="closed" if thinks else "none",
            finish_reason="stop",
            text="",
        )
        for i, (level, ok, thinks) in enumerate(zip(LEVELS, right, long, strict=True))
    ]


def test_a_policy_closes_the_whole_way_and_the_middle_of_the_curve_nothing(tmp_path: Path) -> None:
    easy, hard = [True] * 10, [True] * 10
    never = [False] * 10
    half = [i % 2 == 0 for i in range(20)]
    models = {
        "Short": ("curve", answers(easy + never, never + never)),
        "half": ("curve", answers([not long or level == 2 for long, level in zip(half, LEVELS, strict=True)], half)),
        "Long": ("curve", answers(easy + hard, easy + hard)),
        "adaptive": ("method", answers(easy + hard, never + hard)),
        "adaptive Q4_K_M": ("method", answers(easy + [True] * 9 + [False], never + hard)),
        "CAR": ("routing", answers(easy + hard, half)),
    }
    models["Long"][1][0] = replace(models["Long"][1][0], think_block="open")
    found = measured_rows(models, 8)
    unclosed = {r["name"]: r["unclosed"] for r in found["rows"]}
    assert unclosed == {"Short": 0, "half": 0, "Long": 0.05, "adaptive": 0, "adaptive Q4_K_M": 0, "CAR": 0}
    assert {r["name"] for r in found["rows"] if "gain" in r} == {"adaptive", "adaptive Q4_K_M", "CAR"}
    row = next(r for r in found["rows"] if r["name"] == "adaptive")
    assert row["policy_accuracy"] == pytest.approx(1.0)
    assert row["closed"] == pytest.approx(1.0)
    assert row["gain"]["gain"] > 0.2
    assert row["over_coin"]["gain"] == pytest.approx(0.25)
    assert {r["name"] for r in found["rows"] if "over_coin" in r} == {"half", "adaptive", "adaptive Q4_K_M", "CAR"}
    assert found["oracle"] == {"accuracy": 1.0, "tokens": 55.0}
    # Half of the curve's answers to easy questions are long where it has as many tokens; the adaptive one's are not.
    assert row["overthink_over_curve"]["value"] == pytest.approx(-0.5)
    assert row["underthink_over_curve"]["value"] == 0  # neither leaves out what only Long solves
    quantized = next(r for r in found["rows"] if r["name"] == "adaptive Q4_K_M")
    assert quantized["accuracy_over_f16"]["value"] == pytest.approx(-0.05)
    assert quantized["tokens_over_f16"]["value"] == pytest.approx(1)
    assert "| adaptive | 100.0 | 55.0 |" in table(found)
    assert "| adaptive Q4_K_M | -5.0 (" in table(found)
    write_picture({"pair": {"greedy": found}}, tmp_path / "quality.png")
    assert (tmp_path / "quality.png").stat().st_size > 5000


def test_the_curve_is_refined_where_neighbours_lie_farthest_apart() -> None:
    points = {0.0: (0.3, 0.05), 0.4: (0.32, 0.1), 0.5: (0.5, 0.4), 1.0: (1.0, 1.0)}
    assert between_farthest(points) == 0.75
    close = {n / 20: (n / 20, n / 20) for n in range(21)}
    assert between_farthest(close) is None


def test_the_curve_goes_from_short_to_long_and_methods_keep_their_order() -> None:
    names = {"Long": "curve", "scalar 0.54": "curve", "TIES": "method", "scalar 0.5": "curve", "Short": "curve"}
    models = {name: (kind, answers([True] * 20, [name == "Long"] * 20)) for name, kind in names.items()}
    assert list(in_order(models)) == ["Short", "scalar 0.5", "scalar 0.54", "Long", "TIES"]
    points = curve_points(models, long_think_tokens=8)
    assert points == {0.0: (1.0, 0.1), 0.5: (1.0, 0.1), 0.54: (1.0, 0.1), 1.0: (1.0, 1.0)}
