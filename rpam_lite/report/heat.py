"""Lambda over depth as a heat map: one row a part of a layer, one column a decoder layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rpam_lite.report.charts import Chart
from rpam_lite.report.data import Lambdas, Spread
from rpam_lite.report.svg import WIDTH, line, picture, text

if TYPE_CHECKING:
    from markupsafe import Markup

STEPS = 20  # colours from lambda 0 to 1
# Colours of lambda 0 (Short), one half, and 1 (Long), in the light and the dark theme. Blue and orange are told
# apart by every common kind of colour blindness.
Colour = tuple[int, int, int]
LIGHT: Sequence[Colour] = ((0x00, 0x5F, 0x99), (0xF1, 0xEF, 0xEB), (0xB4, 0x4A, 0x00))
DARK: Sequence[Colour] = ((0x6C, 0xBC, 0xF2), (0x2B, 0x30, 0x37), (0xFF, 0x9C, 0x54))
# Of the spread over rows: none, half, and the most.
SPREAD_LIGHT: Sequence[Colour] = ((0xF1, 0xEF, 0xEB), (0x8F, 0xB5, 0xA4), (0x00, 0x73, 0x4F))
SPREAD_DARK: Sequence[Colour] = ((0x2B, 0x30, 0x37), (0x37, 0x80, 0x6D), (0x43, 0xD1, 0xA3))
_BLACK, _WHITE = (0, 0, 0), (255, 255, 255)
_LABEL, _TALLEST, _WIDE, _WIDE_ENOUGH = 92.0, 30.0, 24.0, 30.0  # units; a figure needs the last
# How the parts of a layer are called, in the order of the computation.
_ORDER = ("input_layernorm", "attention", "self_attn", "post_attention_layernorm", "mlp")


def heat_map(lambdas: Lambdas) -> Chart:
    """Lambda, or its mean over rows; `lambdas` must have at least one layer."""
    told = f"Lambda in {lambdas.layers} layers. {ends(lambdas)}"
    return Chart(
        "Lambda by layer and part", _map(lambdas, "lambda", told, lambda s: (s.mean, f"heat h{step_of(s.mean)}"))
    )


def spread_map(lambdas: Lambdas) -> Chart:
    """Standard deviation of lambda over the rows of each matrix."""
    most = max(s.deviation for part in lambdas.parts.values() for s in part.values())
    told = f"Standard deviation over rows, at most {most:.2f}."
    # 0.5 is the most that numbers between 0 and 1 can have.
    return Chart(
        "Spread over rows",
        _map(lambdas, "spread", told, lambda s: (s.deviation, f"heat s{round(STEPS * min(1.0, s.deviation / 0.5))}")),
    )


def _map(lambdas: Lambdas, name: str, told: str, show: Callable[[Spread], tuple[float, str]]) -> Markup:
    """One row a part, one column a layer; `show` gives a cell's figure and its classes."""
    left = _LABEL if list(lambdas.parts) != [""] else 14.0
    wide = (WIDTH - left - 6) / lambdas.layers
    names = sorted(lambdas.parts, key=_place)
    tall = _TALLEST if len(names) <= 4 else 20.0
    parts: list[Markup] = []
    for row, part in enumerate(names):
        top = 6 + row * tall
        if part:
            parts.append(text((left - 6, top + tall / 2 + 4), short_name(part), "tick end"))
        for layer, spread in lambdas.parts[part].items():
            where = f"layer {layer}{f', {part}' if part else ''}"
            parts.append(_cell((left + layer * wide, top, wide, tall), spread, where, *show(spread)))
    bottom = 6 + len(names) * tall
    every = next(n for n in (1, 2, 4, 5, 10, 20, 50, 100, lambdas.layers) if n * wide >= _WIDE)
    for layer in range(0, lambdas.layers, every):
        parts.append(text((left + (layer + 0.5) * wide, bottom + 16), str(layer), "tick mid"))
    parts.append(text(((left + WIDTH) / 2, bottom + 35), "decoder layer", "label mid"))
    parts.append(line([(left, bottom), (WIDTH - 6, bottom)], "axis"))
    return picture(name, "Heat map", told, parts, bottom + 44)


def scale_bar(letter: str) -> Markup:
    """The colours from the least to the most, for the legend: `h` of lambda, `s` of its spread."""
    from markupsafe import Markup

    cells = Markup("").join(
        Markup('<rect class="heat {}{}" x="{}" y="0" width="8.4" height="12"/>').format(letter, i, 8 * i)
        for i in range(STEPS + 1)
    )
    return Markup('<svg class="scale" viewBox="0 0 168 12" aria-hidden="true">{}</svg>').format(cells)


def ends(lambdas: Lambdas) -> str:
    """Where lambda is least and largest, in words."""
    found = [
        (s.mean, f"layer {i}{f' {name}' if name else ''}") for name, p in lambdas.parts.items() for i, s in p.items()
    ]
    (low, at_low), (high, at_high) = min(found), max(found)
    return f"Least {low:.2f} in {at_low}, largest {high:.2f} in {at_high}."


def palette(colours: Sequence[Colour]) -> list[tuple[str, str]]:
    """Colour of each step, and the colour that text on it is read in.

    Args:
        colours: Those of the least, of the middle and of the most; what lies between is mixed.
    """
    least, middle, most = colours
    found = []
    for i in range(STEPS + 1):
        share = 2 * i / STEPS - 1
        far = most if share > 0 else least
        colour = tuple(round(m + (f - m) * abs(share)) for m, f in zip(middle, far, strict=True))
        ink = _BLACK if contrast(_BLACK, colour) > contrast(_WHITE, colour) else _WHITE
        found.append((_hex(colour), _hex(ink)))
    return found


def contrast(one: Sequence[int], other: Sequence[int]) -> float:
    """Contrast of two colours as WCAG 2 defines it, from 1 to 21."""
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def short_name(part: str) -> str:
    """`q_proj` of `self_attn.q_proj`; norms by their place."""
    name = part.split(".")[-1]
    return {"input_layernorm": "input norm", "post_attention_layernorm": "mlp norm"}.get(name, name)


def shown(spread: Spread) -> str:
    """Lambda as text, with its spread over rows where it has any."""
    return f"{spread.mean:.2f}" + (f" ± {spread.deviation:.2f}" if spread.count > 1 else "")


def step_of(value: float) -> int:
    """Which colour a lambda gets; what lies outside 0 to 1 gets that of the end."""
    return round(STEPS * min(1.0, max(0.0, value)))


def _cell(box: tuple[float, float, float, float], spread: Spread, where: str, value: float, classes: str) -> Markup:
    """One place: its colour, its figure where there is room, and all of it as a tooltip."""
    from markupsafe import Markup

    x, y, wide, tall = box
    told = f"{where}: {shown(spread)}"
    if spread.count > 1:
        told += f", from {spread.low:.2f} to {spread.high:.2f} over {spread.count} rows"
    inside = Markup("")
    if wide >= _WIDE_ENOUGH:
        ink = f"mid tick ink {classes.removeprefix('heat ')}"
        inside = text((x + wide / 2, y + tall / 2 + 4), f"{value:.2f}", ink)
    return Markup('<g><title>{}</title><rect class="{}" x="{}" y="{}" width="{}" height="{}"/>{}</g>').format(
        told, classes, *(f"{v:.2f}" for v in (x, y, wide + 0.2, tall - 1)), inside
    )


def _place(part: str) -> tuple[int, str]:
    """Order of the rows: attention before MLP, as the layer computes."""
    found = next((i for i, name in enumerate(_ORDER) if part.startswith(name)), len(_ORDER))
    order = ("q_proj", "q_norm", "k_proj", "k_norm", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    last = part.split(".")[-1]
    return found, f"{order.index(last):02d}" if last in order else f"99{part}"


def _luminance(colour: Sequence[int]) -> float:
    linear = [c / 12.92 if (c := v / 255) <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for v in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _hex(colour: Sequence[int]) -> str:
    return "#" + "".join(f"{v:02x}" for v in colour)
