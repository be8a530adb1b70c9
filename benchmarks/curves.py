"""The learning benchmark's figures: the measure by step, mean over seeds with a bootstrap band.

Axes: K seeds, G points of the common grid of steps, R bootstrap samples.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter

ALGORITHM_TITLES = {
    "imap": "IMAP",
    "slf": "SL, factored",
    "ipl": "IPL, central",
    "sl": "SL, central",
    "rrd": "RRD, factored",
    "rrd_central": "RRD, central",
    "ircr": "IRCR",
    "rudder": "RUDDER",
    "dense": "dense oracle",
    "sparse": "sparse MAPPO",
}
_COLOURS = {
    "imap": "#d1495b",
    "slf": "#e9a23b",
    "ipl": "#3d85b0",
    "sl": "#5fa777",
    "dense": "#2b2d42",
    "sparse": "#8d99ae",
}
_OTHER_COLOURS = ("#7b5ea7", "#00a6a6", "#b5651d", "#c77dff", "#555b6e")
_DASHES = {"dense": (0, (5, 2)), "sparse": (0, (1, 1.5))}
_INK, _GRID = "#2b2d42", "#e4e6eb"
_GRID_POINTS, _SAMPLES, _COLUMNS = 100, 1000, 3

FloatArray = npt.NDArray[np.float64]
Cells = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Panel:
    """One task to draw."""

    task: str
    title: str
    cells: Mapping[str, Cells]
    """Its finished cells by algorithm."""
    measured: str = "return"


def in_order(names: Collection[str]) -> list[str]:
    """Return algorithms in the order of tables and legends: ours first, unknown ones last."""
    known = [name for name in ALGORITHM_TITLES if name in names]
    return known + sorted(set(names) - set(known))


def draw_curves(panels: Sequence[Panel], folder: Path) -> None:
    """Write `<task>.png` for each panel and `all.png` of them all into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    algorithms = in_order({name for panel in panels for name in panel.cells})
    for panel in panels:
        draw_panel(panel, algorithms, folder)
    columns = min(_COLUMNS, math.ceil(math.sqrt(len(panels))))
    rows = -(-len(panels) // columns)
    figure = _figure(max(4.6 * columns, 8.0), 3.4 * rows + 0.5)
    for index, panel in enumerate(panels):
        _draw_panel(figure.add_subplot(rows, columns, index + 1), panel, algorithms)
    _add_legend(figure, algorithms, algorithms)
    figure.savefig(folder / "all.png")


def draw_panel(panel: Panel, algorithms: Sequence[str], folder: Path) -> None:
    """Write `<task>.png` of one panel into a folder; `algorithms` are those that share colours."""
    figure = _figure(8.0, 5.0)
    _draw_panel(figure.add_subplot(), panel, algorithms)
    _add_legend(figure, in_order(panel.cells), algorithms)
    figure.savefig(folder / f"{panel.task}.png")


def common_curves(cells: Cells) -> tuple[FloatArray, FloatArray]:
    """Return steps (G,) that all seeds have reached, and each seed's return there (K, G).

    Between two iterations in which episodes ended the return is interpolated.
    """
    curves = [np.asarray(cell["returns"], dtype=np.float64) for cell in cells]
    start = max(curve[0, 0] for curve in curves)
    end = min(curve[-1, 0] for curve in curves)
    steps = np.linspace(start, end, _GRID_POINTS)
    return steps, np.stack([np.interp(steps, curve[:, 0], curve[:, 1]) for curve in curves])


def mean_band(returns: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the ends (G,) of the 95 % percentile bootstrap interval of the mean over seeds."""
    K = len(returns)
    picks = np.random.default_rng(0).integers(K, size=(_SAMPLES, K))
    low, high = np.percentile(returns[picks].mean(axis=1), [2.5, 97.5], axis=0)
    return low, high


def _draw_panel(axes: Axes, panel: Panel, algorithms: Sequence[str]) -> None:
    axes.set_title(panel.title, loc="left", color=_INK, fontweight="bold", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_GRID)
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_INK, length=0)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel("environment steps", color=_INK)
    axes.set_ylabel(f"true {panel.measured}", color=_INK)
    axes.margins(x=0)
    for name in reversed(in_order(panel.cells)):  # ours is drawn last, on top
        steps, returns = common_curves(panel.cells[name])
        low, high = mean_band(returns)
        colour = _colour(name, algorithms)
        axes.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.plot(steps, returns.mean(axis=0), **_line(name, colour))


def _add_legend(figure: Figure, shown: Sequence[str], algorithms: Sequence[str]) -> None:
    """Put one legend of the algorithms shown below the panels."""
    handles = [
        Line2D([], [], label=ALGORITHM_TITLES.get(n, n), **_line(n, _colour(n, algorithms)))
        for n in shown
    ]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=len(handles),
        frameon=False,
        labelcolor=_INK,
    )


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _line(name: str, colour: str) -> dict[str, Any]:
    return {
        "color": colour,
        "linewidth": 2.6 if name == "imap" else 1.7,
        "linestyle": _DASHES.get(name, "-"),
    }


def _colour(name: str, algorithms: Sequence[str]) -> str:
    """Return an algorithm's colour, the same in every figure of one report."""
    if name in _COLOURS:
        return _COLOURS[name]
    others = [other for other in algorithms if other not in _COLOURS]
    return _OTHER_COLOURS[others.index(name) % len(_OTHER_COLOURS)]
