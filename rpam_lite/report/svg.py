"""Inline SVG by hand: scales, axes, lines and marks that take their colours from the page's style sheet.

A picture is `WIDTH` units wide, so that its text is still read on a phone, where it is shown smaller.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from markupsafe import Markup

WIDTH, HEIGHT = 440.0, 300.0
LEFT, RIGHT, TOP, BOTTOM = 52.0, 14.0, 14.0, 46.0
Point = tuple[float, float]


@dataclass(frozen=True)
class Scale:
    """Maps values from `low` to `high` onto the picture's units from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        """Where a value is drawn."""
        low, high, at = (math.log10(v) if self.logarithmic else v for v in (self.low, self.high, value))
        return self.start + (self.end - self.start) * (at - low) / (high - low)

    def ticks(self, about: int = 5) -> list[float]:
        """Round values within the range, some `about` of them."""
        if self.logarithmic:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            for steps in ((1,), (1, 3), (1, 2, 5)):
                found = [s * 10.0**e for e in range(first, last + 1) for s in steps]
                if len(kept := [v for v in found if self.low <= v <= self.high]) >= 3:
                    return kept
            return [self.low, self.high]
        rough = (self.high - self.low) / about
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        return [n * step for n in range(first, math.floor(self.high / step + 1e-9) + 1)]


def spanning(values: Iterable[float], start: float, end: float, margin: float = 0.06) -> Scale:
    """A scale that shows all values with some room around them."""
    found = [v for v in values if math.isfinite(v)]
    low, high = min(found), max(found)
    room = margin * (high - low) or max(0.05 * abs(high), 0.5)
    return Scale(low - room, high + room, start, end)


def across(values: Iterable[float], margin: float = 0.06) -> Scale:
    """A scale over the width of the plot."""
    return spanning(values, LEFT, WIDTH - RIGHT, margin)


def upwards(values: Iterable[float]) -> Scale:
    """A scale over the height of the plot."""
    return spanning(values, HEIGHT - BOTTOM, TOP, 0.06)


def picture(name: str, title: str, description: str, parts: Iterable[Markup], height: float = HEIGHT) -> Markup:
    """The whole picture, with the texts that a screen reader reads.

    Args:
        name: Unique on the page.
        title: What it is.
        description: What it shows, in a sentence or two.
        parts: What is drawn.
        height: In units.
    """
    from markupsafe import Markup

    return Markup(
        '<svg viewBox="0 0 {w} {h}" role="img" aria-labelledby="{n}-t {n}-d">'
        '<title id="{n}-t">{title}</title><desc id="{n}-d">{description}</desc>{parts}</svg>'
    ).format(w=_n(WIDTH), h=_n(height), n=name, title=title, description=description, parts=Markup("").join(parts))


def axes(x: Scale, y: Scale, labels: tuple[str, str], x_ticks: Sequence[float] | None = None) -> Markup:
    """Grid, ticks and the two labels."""
    from markupsafe import Markup

    bottom, parts = max(y.start, y.end), []
    for value in y.ticks(6):
        parts.append(line([(LEFT, y(value)), (WIDTH - RIGHT, y(value))], "grid"))
        parts.append(text((LEFT - 7, y(value) + 4), number(value), "tick end"))
    for value in x.ticks(6) if x_ticks is None else x_ticks:
        parts.append(line([(x(value), bottom), (x(value), bottom + 4)], "axis"))
        parts.append(text((x(value), bottom + 17), number(value), "tick mid"))
    parts.append(line([(LEFT, bottom), (WIDTH - RIGHT, bottom)], "axis"))
    parts.append(text(((LEFT + WIDTH - RIGHT) / 2, bottom + 37), labels[0], "label mid"))
    middle = (TOP + bottom) / 2
    parts.append(
        Markup('<text class="label mid" transform="translate(13 {} ) rotate(-90)">{}</text>').format(
            _n(middle), labels[1]
        )
    )
    return Markup("").join(parts)


def line(points: Sequence[Point], classes: str) -> Markup:
    """A line through points."""
    from markupsafe import Markup

    path = "M" + "L".join(f"{_n(x)} {_n(y)}" for x, y in points)
    return Markup('<path class="{}" d="{}"/>').format(classes, path)


def text(at: Point, content: str, classes: str) -> Markup:
    """A text; the class `mid` centres it, `end` lets it end there."""
    from markupsafe import Markup

    return Markup('<text x="{}" y="{}" class="{}">{}</text>').format(_n(at[0]), _n(at[1]), classes, content)


# Outlines around the origin: kinds are told apart without colour.
_SHAPES = {
    "circle": "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0 -10 0Z",
    "square": "M-4.5 -4.5h9v9h-9Z",
    "diamond": "M0 -6.5L6.5 0L0 6.5L-6.5 0Z",
    "triangle": "M0 -6.5L6 4.5L-6 4.5Z",
    "cross": "M-5 -5L5 5M-5 5L5 -5",
    "plus": "M0 -6V6M-6 0H6",
    "dot": "M-2.6 0a2.6 2.6 0 1 0 5.2 0a2.6 2.6 0 1 0 -5.2 0Z",
    "ring": "M-10 0a10 10 0 1 0 20 0a10 10 0 1 0 -20 0Z",
}
MERGE_SHAPES = ("circle", "triangle", "diamond", "cross", "plus")


def mark(at: Point, shape: str, classes: str, told: str) -> Markup:
    """A mark; `told` is its tooltip."""
    from markupsafe import Markup

    return Markup('<path class="mark {}" d="{}" transform="translate({} {})"><title>{}</title></path>').format(
        classes, _SHAPES[shape], _n(at[0]), _n(at[1]), told
    )


def swatch(shape: str, classes: str, line_classes: str = "line") -> Markup:
    """A mark for a legend, on a piece of its line where it has one; the line alone without a shape."""
    from markupsafe import Markup

    drawn = line([(0, 8), (28, 8)], f"{line_classes} {classes}") if line_classes else Markup("")
    form = Markup("")
    if shape:
        form = Markup('<path class="mark {}" d="{}" transform="translate(14 8){}"/>').format(
            classes, _SHAPES[shape], " scale(.7)" if shape == "ring" else ""
        )
    return Markup('<svg class="swatch" viewBox="0 0 28 16" aria-hidden="true">{}{}</svg>').format(drawn, form)


def number(value: float) -> str:
    """A figure at an axis, without needless digits."""
    rounded = round(value, 10)
    if rounded and not 1e-3 <= abs(rounded) < 1e6:
        return f"{rounded:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{rounded:,.10g}"


def _n(value: float) -> str:
    """A coordinate to a tenth of a unit: small files that are the same on every machine."""
    return f"{value:.1f}".removesuffix(".0").replace("-0.0", "0")
