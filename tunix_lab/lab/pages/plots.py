"""Curves as small multiples: every panel has axes of its own, as SVG for a page or as a PNG file."""

import dataclasses
import html
import io
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunix_lab.lab.pages.run_view import Curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_PANELS = 12
# After Okabe and Ito, as MLflow shows the runs.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#6A3D9A", "#8C564B", "#7F7F7F", "#B2182B")
_INK, _RULE = "#5A6169", "#E3E6E9"
_MAX_POINTS = 600  # more than a panel has pixels
_SIZE = (3.7, 2.05)  # inches of a panel on a page; its text keeps this proportion
_LARGEST = 1e100  # what computes with axes would overflow beyond it
_LOG_FROM = 100.0  # the largest value over the smallest, from which a positive metric has a logarithmic axis


@dataclasses.dataclass(frozen=True)
class Series:
    """A line of a panel.

    Attributes:
      label: for the legend.
      curve: its points; where one is not finite, the line is broken.
      colour: index into `COLOURS`.
      sparse: whether each point is a measurement of its own, to be marked (an evaluation).
    """

    label: str
    curve: Curve
    colour: int = 0
    sparse: bool = False


@dataclasses.dataclass(frozen=True)
class Panel:
    """A small chart.

    Attributes:
      title: the metric, or what metrics share the axes.
      series: its lines.
      note: what the reader must know, empty for nothing.
    """

    title: str
    series: tuple[Series, ...]
    note: str = ""


def panel(title: str, series: Sequence[Series]) -> Panel:
    """A panel of these lines, with a note on what cannot be drawn or was left out."""
    notes = []
    if title.startswith("perf/") and all(len(line.curve.steps) > 3 for line in series):
        series = [dataclasses.replace(line, curve=Curve(line.curve.steps[1:], line.curve.values[1:])) for line in series]
        notes.append("without the first update, which compiles")
    broken = sum(not _can_be_drawn(value) for line in series for value in line.curve.values)
    if broken:
        notes.append(f"{broken} {'value is' if broken == 1 else 'values are'} not finite, or too large to draw")
    if _is_logarithmic(series):
        notes.append("logarithmic axis")
    return Panel(title, tuple(series), " · ".join(notes))


def to_svg(drawn: Panel) -> str:
    """The panel as an `<svg>` element. Its text and lines take the colours of the page: var(--ink), var(--rule), var(--c0), …"""
    import matplotlib

    figure = _figure(_SIZE)
    _draw(figure.add_axes((0.115, 0.145, 0.87, 0.825)), drawn)
    stream = io.StringIO()
    # The page's own fonts, and the same ids whenever the same panel is drawn. These two can be set in no other way.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": drawn.title}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # would repeat from panel to panel
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1), count=1)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font: \1 var(--sans)", svg)
    for colour, name in [(_INK, "ink-soft"), (_RULE, "rule"), *((c, f"c{i}") for i, c in enumerate(COLOURS))]:
        svg = re.sub(re.escape(colour), f"var(--{name})", svg, flags=re.IGNORECASE)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(drawn.title)}" ', 1)


def write_png(drawn: Panel, path: Path) -> None:
    """Writes the panel with title, axis name and legend as a PNG."""
    figure = _figure((7.2, 4.2))
    axes = figure.add_axes((0.09, 0.12, 0.88, 0.78))
    _draw(axes, drawn)
    axes.set_title(drawn.title, loc="left", fontsize=12, fontweight="bold", color="#1C2024", parse_math=False)
    if drawn.note:
        axes.set_title(drawn.note, loc="right", fontsize=8, color=_INK, parse_math=False)
    axes.set_xlabel(_x_name(drawn.title), color=_INK, fontsize=9)
    legend = axes.legend([_legend_text(line.label) for line in drawn.series], frameon=False, fontsize=8, labelcolor=_INK)
    for text in legend.get_texts():
        text.set_parse_math(False)
    figure.savefig(path, format="png", dpi=160, facecolor="white")


def _figure(size: tuple[float, float]) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=size)


def _draw(axes: "Axes", drawn: Panel) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

    for line in drawn.series:
        steps, values = _thinned(line.curve)
        style: dict[str, Any] = {"color": COLOURS[line.colour % len(COLOURS)], "linewidth": 1.3, "solid_capstyle": "round"}
        style["linestyle"] = "-" if line.colour < len(COLOURS) else "--"
        if line.sparse or len(steps) == 1:
            style |= {"marker": "o", "markersize": 3.4, "markeredgewidth": 0}
        axes.plot(steps, values, **style)
    if _is_logarithmic(drawn.series):
        axes.set_yscale("log")
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(4, min_n_ticks=3))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=2))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    axes.grid(axis="y", color=_RULE, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_INK, labelsize=7.5, length=0, which="both", pad=3)
    axes.margins(x=0.02, y=0.08)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_RULE)


def _thinned(curve: Curve) -> tuple[list[int], list[float]]:
    """At most about `_MAX_POINTS` points: the lowest and the highest of each stretch, so that no spike is lost.

    What cannot be drawn becomes NaN, which breaks the line; a stretch that has such a value keeps it.
    """
    values = [value if _can_be_drawn(value) else math.nan for value in curve.values]
    if len(values) <= _MAX_POINTS:
        return list(curve.steps), values
    stride = math.ceil(len(values) / (_MAX_POINTS // 2))
    kept = {0, len(values) - 1}
    for begin in range(0, len(values), stride):
        stretch = range(begin, min(begin + stride, len(values)))
        finite = [index for index in stretch if not math.isnan(values[index])]
        kept |= {min(finite, key=values.__getitem__), max(finite, key=values.__getitem__)} if finite else set()
        kept |= {next((index for index in stretch if math.isnan(values[index])), begin)} if len(finite) < len(stretch) else set()
    chosen = sorted(kept)
    return [curve.steps[index] for index in chosen], [values[index] for index in chosen]


def _can_be_drawn(value: float) -> bool:
    return math.isfinite(value) and abs(value) < _LARGEST


def _is_logarithmic(series: Sequence[Series]) -> bool:
    finite = [value for line in series for value in line.curve.values if _can_be_drawn(value)]
    return len(finite) > 2 and min(finite) > 1 / _LARGEST and max(finite) / min(finite) > _LOG_FROM


def _short(value: float) -> str:
    """A number for an axis: 12k, 0.25, 3e−5."""
    if value == 0:
        return "0"
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:.4g}{name}".replace("-", "−")
    text = f"{value:.3g}" if abs(value) >= 1e-3 else f"{value:.2g}"
    return re.sub(r"e([+-])0*", r"e\1", text).replace("-", "−")


def _x_name(title: str) -> str:
    return "seconds since the start" if title.startswith("system/") else "optimizer updates"


def _legend_text(label: str) -> str:
    return label.lstrip("_") or label  # matplotlib leaves a label with an underscore out
