"""The page's charts: accuracy against tokens, what happens at each level, the course of the fit, the dial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rpam_lite.report.data import FitLog, Report, Row
from rpam_lite.report.svg import (
    BOTTOM,
    HEIGHT,
    LEFT,
    MERGE_SHAPES,
    RIGHT,
    TOP,
    WIDTH,
    Point,
    Scale,
    across,
    axes,
    line,
    mark,
    picture,
    swatch,
    text,
    upwards,
)

if TYPE_CHECKING:
    from markupsafe import Markup

# A label this near to another one is left out, in units.
_NEAR = (26.0, 16.0)


@dataclass(frozen=True)
class Chart:
    """A picture with its title and the entries of its legend."""

    title: str
    svg: Markup
    legend: Sequence[tuple[Markup, str]] = ()


def frontier(report: Report) -> Chart:
    """Accuracy against mean tokens: the scalar curve, both parents and the merge's files with their intervals."""
    rows = report.rows
    curve = sorted((r for r in rows if r["weight"] is not None), key=lambda r: r["weight"])
    merges = [r for r in rows if r["kind"] == "merge"]
    bounds = [r["intervals"] for r in merges]
    x = across([r["tokens"] for r in rows] + [v for b in bounds for v in b["tokens"][1:]])
    y = upwards([100 * r["accuracy"] for r in rows] + [100 * v for b in bounds for v in b["pass@1"][1:]])
    place = {r["name"]: (x(r["tokens"]), y(100 * r["accuracy"])) for r in rows}
    parts = [axes(x, y, ("mean generated tokens", "accuracy, %"))]
    parts.append(line([place[r["name"]] for r in (curve[0], curve[-1])], "line scalar dashed"))
    parts.append(line([place[r["name"]] for r in curve], "line scalar"))
    for row in curve[1:-1]:
        parts.append(mark(place[row["name"]], "dot", "scalar solid", _told(row)))
    marked = [place[r["name"]] for r in (curve[0], curve[-1], *merges)]
    parts += _labels([(place[r["name"]], f"{r['weight']:g}") for r in curve[1:-1]], marked)
    for row in (curve[0], curve[-1]):
        parts.append(mark(place[row["name"]], _SHAPE[row["name"]], f"{_CLASS[row['name']]} solid", _told(row)))
    for row in merges[:1]:
        parts += _error_bars(row, x, y)
    for row, shape in zip(merges, _shapes(merges), strict=True):
        parts.append(mark(place[row["name"]], shape, "merge", _told(row)))
    members = [r for r in rows if r["kind"] == "member"]
    for row in members:
        parts.append(mark(place[row["name"]], "dot", "merge", _told(row)))
    named = [(place[r["name"]], r["name"].partition(" ")[2]) for r in members]
    parts += _labels(named, [place[r["name"]] for r in (curve[0], curve[-1], *merges, *curve[1:-1])])
    told = "; ".join(_told(row) for row in rows)
    parents = (curve[0], curve[-1])
    legend = [(swatch(_SHAPE[r["name"]], f"{_CLASS[r['name']]} solid", ""), r["name"]) for r in parents]
    legend.append((swatch("dot", "scalar solid"), "interpolation with one number, lambda beside it"))
    legend.append((swatch("", "scalar", "line dashed"), "a coin tossed between both parents"))
    legend += [(swatch(s, "merge", ""), r["name"]) for r, s in zip(merges, _shapes(merges), strict=True)]
    if members:
        legend.append((swatch("dot", "merge", ""), "other merges of the family, their dial beside them"))
    title = "Accuracy against tokens"
    return Chart(title, picture("frontier", title, f"Higher and further left is better. {told}.", parts), legend)


def by_level(report: Report, field: str, title: str, label: str) -> Chart:
    """One share by level of difficulty, of both parents, the headline's file and the interpolation next to it."""
    merge = report.headline.row
    told = [report.short, report.long, *report.nearest_scalars, merge]
    levels = [int(level) for level in merge["levels"]]
    x = across(levels, 0.04)
    y = Scale(-4, 104, HEIGHT - BOTTOM, TOP)
    parts = [axes(x, y, ("level of difficulty", label), levels if len(levels) <= 12 else None)]
    legend, words = [], []
    for row in told:
        name, kind = row["name"], _CLASS.get(row["name"], row["kind"])
        shares = {int(level): 100 * found[field] for level, found in row["levels"].items()}
        points = [(x(level), y(share)) for level, share in sorted(shares.items())]
        shape, filled = _SHAPE.get(name, "dot" if kind == "scalar" else "circle"), "" if kind == "merge" else " solid"
        parts.append(line(points, f"line {kind}{' dashed' if kind == 'scalar' else ''}"))
        for point, (level, share) in zip(points, sorted(shares.items()), strict=True):
            parts.append(mark(point, shape, f"{kind}{filled}", f"{name}, level {level}: {share:.1f} %"))
        legend.append((swatch(shape, f"{kind}{filled}", "line dashed" if kind == "scalar" else "line"), name))
        words.append(f"{name}: " + ", ".join(f"{share:.0f} % at level {level}" for level, share in shares.items()))
    return Chart(title, picture(f"level-{field}", title, "; ".join(words) + ".", parts), legend)


def fit_curves(log: FitLog) -> list[Chart]:
    """One chart a term of the loss, each with its own axis: terms differ by orders of magnitude."""
    return [_fit_curve(term, curve) for term, curve in log.terms.items()]


def dial(told: Mapping[str, Any]) -> Chart:
    """The family of merges on calibration questions, the one taken with a ring around it."""
    members = sorted(told["members"], key=lambda m: m["tokens"])
    bounds = [m["intervals"] for m in members]
    x = across([m["tokens"] for m in [*members, told["long"]]] + [v for b in bounds for v in b["tokens"]])
    y = upwards([100 * v for b in bounds for v in b["pass@1"]] + [100 * told["long"]["accuracy"]])
    place = [(x(m["tokens"]), y(100 * m["accuracy"])) for m in members]
    parts = [axes(x, y, ("mean generated tokens", "accuracy, %"))]
    for member, (at, _) in zip(members, place, strict=True):
        low, high = (y(100 * v) for v in member["intervals"]["pass@1"])
        parts.append(line([(at, low), (at, high)], "whisker merge"))
    parts.append(line(place, "line merge"))
    words = [f"{m['name']}: {100 * m['accuracy']:.1f} % at {m['tokens']:.1f} tokens" for m in members]
    parts += [mark(at, "circle", "merge", word) for at, word in zip(place, words, strict=True)]
    parts += _labels([(at, m["label"]) for at, m in zip(place, members, strict=True)], [])
    taken = told["members"][told["index"]]
    parts.append(mark((x(taken["tokens"]), y(100 * taken["accuracy"])), "ring", "merge", "the one taken"))
    long = told["long"]
    long_word = f"Long: {100 * long['accuracy']:.1f} % at {long['tokens']:.1f} tokens"
    parts.append(mark((x(long["tokens"]), y(100 * long["accuracy"])), _SHAPE["Long"], "long solid", long_word))
    legend = [
        (swatch("circle", "merge"), "merges, their dial beside them"),
        (swatch("ring", "merge", ""), "the one taken"),
    ]
    legend.append((swatch(_SHAPE["Long"], "long solid", ""), "Long"))
    measured = told.get("measured", True)
    title = "The family on unseen calibration questions" if measured else "The family, by the answers of its parents"
    return Chart(title, picture("dial", title, "; ".join([*words, long_word]) + ".", parts), legend)


_CLASS = {"Short": "short", "Long": "long"}
_SHAPE = {"Short": "square", "Long": "diamond"}


def _shapes(merges: Sequence[Row]) -> list[str]:
    return [MERGE_SHAPES[i % len(MERGE_SHAPES)] for i in range(len(merges))]


def _told(row: Row) -> str:
    return f"{row['name']}: {100 * row['accuracy']:.1f} % at {row['tokens']:.1f} tokens"


def _error_bars(row: Row, x: Scale, y: Scale) -> list[Markup]:
    """The 95 % intervals of one row, as a cross."""
    _, low, high = row["intervals"]["pass@1"]
    _, few, many = row["intervals"]["tokens"]
    at = x(row["tokens"]), y(100 * row["accuracy"])
    return [
        line([(at[0], y(100 * low)), (at[0], y(100 * high))], "whisker merge"),
        line([(x(few), at[1]), (x(many), at[1])], "whisker merge"),
    ]


def _labels(wanted: Sequence[tuple[Point, str]], taken: Sequence[Point]) -> list[Markup]:
    """Small labels beside their points, but for those that would lie on another one or on a mark."""
    placed: list[Point] = list(taken)
    parts = []
    for (x, y), content in wanted:
        # Right below, where a rising curve leaves room; else left above.
        at = (x + 7, y + 15) if y + 15 < HEIGHT - BOTTOM and x < WIDTH - RIGHT - 30 else (x - 22, y - 8)
        if all(abs(at[0] - px) > _NEAR[0] or abs(at[1] - py) > _NEAR[1] for px, py in placed):
            placed.append(at)
            parts.append(text(at, content, "small"))
    return parts


def _fit_curve(term: str, curve: Sequence[float]) -> Chart:
    logarithmic = min(curve) > 0 and max(curve) > 20 * min(curve)
    height = 220.0
    if logarithmic:
        y = Scale(min(curve) / 1.3, max(curve) * 1.3, height - BOTTOM, TOP, True)
    else:
        low, high = min(curve), max(curve)
        room = 0.08 * (high - low) or max(0.05 * abs(high), 0.5)
        y = Scale(low - room, high + room, height - BOTTOM, TOP)
    x = Scale(0.5, max(len(curve), 2) + 0.5, LEFT, WIDTH - RIGHT)
    points = [(x(i), y(value)) for i, value in enumerate(curve, 1)]
    whole = [t for t in x.ticks(6) if t == int(t) and t >= 1]
    parts = [axes(x, y, ("step", "log scale" if logarithmic else "value"), whole), line(points, "line merge")]
    if len(curve) <= 60:
        for i, (point, value) in enumerate(zip(points, curve, strict=True), 1):
            parts.append(mark(point, "dot", "merge solid", f"step {i}: {value:.4g}"))
    told = f"From {curve[0]:.4g} to {curve[-1]:.4g} in {len(curve)} steps; least {min(curve):.4g}."
    name = term.replace("_", " ")
    return Chart(name, picture(f"fit-{term}", f"Course of {name}", told, parts, height))
