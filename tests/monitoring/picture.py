"""Draws the main panels of the overview from what Prometheus saw, for docs/metrics.md."""

from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter
from matplotlib.typing import RcKeyType
from numpy.typing import NDArray

from monitoring.panels import Query, queries
from monitoring.servers import Prometheus

SHOWN = (
    "Explanations by outcome",
    "Duration",
    "First tile",
    "Where the time goes",
    "Queue",
    "Wait for the first batch",
    "Device use and batch fill",
    "Rows in a batch",
    "Duration of a batch",
)
COLUMNS = 3
BACKGROUND, FOREGROUND, GRID = "#181b1f", "#ccccdc", "#2c3235"
COLOURS = ("#73bf69", "#f2cc0c", "#8ab8ff", "#ff780a", "#f2495c", "#5794f2", "#b877d9", "#c4c4d4")


def draw(path: Path, prometheus: Prometheus, begin: float, end: float) -> None:
    """Write a PNG file of the time from `begin` to `end`, in seconds since 1970."""
    panels: dict[str, list[Query]] = {}
    for query in queries("overview"):
        panels.setdefault(query.title, []).append(query)
    mpl.use("agg")
    style: dict[RcKeyType, object] = {
        "axes.axisbelow": True,
        "axes.edgecolor": GRID,
        "axes.facecolor": BACKGROUND,
        "figure.facecolor": "#111217",
        "font.size": 8,
        "grid.color": GRID,
        "legend.frameon": False,
        "text.color": FOREGROUND,
        "xtick.color": FOREGROUND,
        "ytick.color": FOREGROUND,
    }
    with mpl.rc_context(style):
        figure, axes = plt.subplots(len(SHOWN) // COLUMNS, COLUMNS, figsize=(14, 8.5), layout="constrained")
        for title, each in zip(SHOWN, axes.flat, strict=True):
            _draw(each, panels[title], prometheus, begin, end)
        figure.savefig(path, dpi=100)
        plt.close(figure)


def _draw(axes: Axes, panel: list[Query], prometheus: Prometheus, begin: float, end: float) -> None:
    """Draw one panel."""
    times = np.arange(begin, end, 1.0)
    lines: dict[str, NDArray[np.float64]] = {}
    for query in panel:
        for series in prometheus.range(query.promql(), begin, end):
            at, values = np.array(series.values).T
            known = np.interp(times, at, values, left=np.nan, right=np.nan)
            lines[query.name_of(series.labels)] = known
    lines = dict(sorted(lines.items(), key=lambda line: line[0] != "complete"))  # the green one
    shown = panel[0].panel
    if shown.stacked:
        axes.stackplot(
            times - begin,
            *(np.nan_to_num(line) for line in lines.values()),
            labels=list(lines),
            colors=COLOURS,
        )
    else:
        for colour, (name, line) in zip(COLOURS, lines.items(), strict=False):
            axes.plot(times - begin, line, label=name, color=colour, linewidth=1.4)
        for limit in shown.limits:
            axes.axhline(limit, color="#f2495c", linewidth=0.8, linestyle="--")
    axes.set_title(panel[0].title, loc="left", fontsize=9, color=FOREGROUND)
    axes.set_xlim(0, end - begin)
    axes.set_ylim(bottom=0)
    axes.grid(linewidth=0.6)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{seconds:g} s"))
    axes.yaxis.set_major_formatter(FuncFormatter(FORMATS[shown.unit]))
    axes.legend(loc="upper left", bbox_to_anchor=(-0.02, -0.08), fontsize=7, ncols=3)


def _seconds(value: float, _: int | None) -> str:
    return f"{value:g} s" if value >= 1 or not value else f"{value * 1000:g} ms"


FORMATS = {
    "s": _seconds,
    "ops": lambda value, _: f"{value:g} /s",
    "short": lambda value, _: f"{value:g}",
    "percentunit": lambda value, _: f"{value:.0%}",
    "bytes": lambda value, _: f"{value / 2**30:.1f} GiB",
}
