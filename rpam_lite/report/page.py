"""report.html: one file with its pictures and its style inside; nothing is fetched, nothing runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from quant.statistics import Interval
from rpam_lite.checkpoint.files import size_text
from rpam_lite.report import charts, heat
from rpam_lite.report.commands import commands
from rpam_lite.report.data import Report
from rpam_lite.report.licences import what_follows
from rpam_lite.report.markdown import ADAPTIVITY, verdict

if TYPE_CHECKING:
    from jinja2 import Environment


def page(report: Report) -> str:
    """The page as HTML. Whatever a model or a file says is escaped."""
    head, lambdas = report.headline, report.lambdas
    in_layers = lambdas if lambdas is not None and lambdas.layers else None
    by_row = in_layers is not None and in_layers.granularity == "row"
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            origin=report.origin,
            headline=head,
            other_file=_other_file(report),
            gain=head.row.get("over_curve"),
            verdict=verdict(head.row),
            light=[("h", heat.palette(heat.LIGHT)), ("s", heat.palette(heat.SPREAD_LIGHT))],
            dark=[("h", heat.palette(heat.DARK)), ("s", heat.palette(heat.SPREAD_DARK))],
            frontier=charts.frontier(report),
            levels=_level_charts(report),
            told_rows=_told_rows(report),
            adaptivity=[(told, head.row["adaptivity"].get(name)) for name, told in ADAPTIVITY.items()],
            heat=heat.heat_map(in_layers) if in_layers else None,
            spread=heat.spread_map(in_layers) if in_layers and by_row else None,
            heat_ends=heat.ends(in_layers) if in_layers else "",
            scale_bar=heat.scale_bar("h"),
            spread_bar=heat.scale_bar("s"),
            fit_curves=charts.fit_curves(report.fit) if report.fit is not None else [],
            dial=charts.dial(report.dial) if report.dial is not None else None,
            licences=what_follows(report.origin.parents),
            kld=kld_text,
            commands=commands(report.use) if report.use is not None else [],
        )
    )


@lru_cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("rpam_lite.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "between": between,
        "size": size_text,
        "shown": heat.shown,
        "step": lambda spread: heat.step_of(spread.mean),
        "time": time_text,
        "part": heat.short_name,
    }
    return environment


def percent(share: float, digits: int = 1) -> str:
    """A share as percent."""
    return f"{100 * share:.{digits}f} %"


def between(interval: Interval | Sequence[float] | None, scale: float = 100.0, digits: int = 1) -> str:
    """The ends of an interval; a dash where it is not defined."""
    if interval is None:
        return "-"
    low, high = (interval.low, interval.high) if isinstance(interval, Interval) else (interval[1], interval[2])
    return f"{scale * low:.{digits}f} to {scale * high:.{digits}f}"


def time_text(seconds: float) -> str:
    """A duration with the unit that suits it."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def kld_text(divergence: Mapping[str, float]) -> str:
    """Mean KL divergence with its standard error."""
    return f"{divergence['mean']:.2g} ± {divergence['error']:.1g}"


def _level_charts(report: Report) -> list[charts.Chart]:
    if not report.has_levels:
        return []
    return [
        charts.by_level(report, "long", "Who thinks long, and when", "long answers, %"),
        charts.by_level(report, "accuracy", "Accuracy by level", "accuracy, %"),
    ]


def _told_rows(report: Report) -> list[Mapping[str, Any]]:
    """Rows of the tables by level: both parents and the merge's files."""
    return [report.short, report.long, *(file.row for file in report.files)]


def _other_file(report: Report) -> str:
    """The headline's file, where the commands take another one; else empty."""
    name = report.headline_file.name
    return "" if report.use is None or report.use.gguf_name == name else name
