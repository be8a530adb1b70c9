"""The files of a comparison: the page, its table, and the picture.

The picture shows interquartile means over seeds with their intervals, by step.
"""

import csv
import io
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter

from marl.reports.comparison import (
    CSV_COLUMNS,
    ComparisonError,
    TaskResults,
    csv_rows,
    final_of,
    page,
    tasks_of,
)
from marl.reports.estimates import band, interpolated
from marl.reports.plots import INK, figure_of, literal, saved, styled, title
from marl.reports.recorded import RecordedRun
from marl.utils.files import atomic_write, make_folder, output

_COLOURS = {
    "imap": "#d1495b",
    "slf": "#e9a23b",
    "ipl": "#3d85b0",
    "sl": "#5fa777",
    "dense": "#2b2d42",
    "sparse": "#8d99ae",
}
"""Of algorithms, the same in every picture."""
_OTHERS = ("#7b5ea7", "#00a6a6", "#b5651d", "#c77dff", "#555b6e", *_COLOURS.values())
_DASHES = {"dense": (0, (5, 2)), "sparse": (0, (1, 1.5))}
_POINTS, _COLUMNS, _MOST = 100, 3, 10


def write_comparison(
    runs: Sequence[RecordedRun],
    folder: Path,
    *,
    metric: str = "return/mean",
    until: int | None = None,
    level: float | None = None,
    notes: Sequence[str] = (),
) -> str:
    """Write ``comparison.md``, ``.csv`` and ``.png`` of some runs, and return the page."""
    tasks, left_out = tasks_of(runs, metric, until)
    notes = [*notes, *left_out]
    if not tasks:
        raise ComparisonError("\n".join(["there is nothing to compare", *notes]))
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerows([CSV_COLUMNS, *csv_rows(tasks, level)])
    with output(folder, "choose another --out"):
        make_folder(folder)
        draw_tasks(tasks, folder / "comparison.png")
        atomic_write(folder / "comparison.csv", table.getvalue().encode())
        text = page(tasks, level, notes, "comparison.png")
        atomic_write(folder / "comparison.md", text.encode())
    return text


def draw_tasks(
    tasks: Sequence[TaskResults], path: Path, titles: Mapping[str, str] | None = None
) -> Path:
    """Write a picture with a panel for each environment, and return its path.

    `titles` say what groups are called there. Of an environment's groups at most ten are drawn,
    those that end highest.
    """
    drawn = [_best(task) for task in tasks]
    names = list(dict.fromkeys(name for task in drawn for name in task.groups))
    colours = _colours(names)
    columns = min(_COLUMNS, math.ceil(math.sqrt(len(drawn))))
    rows = -(-len(drawn) // columns)
    width = 8.0 if len(drawn) == 1 else max(4.6 * columns, 8.0)
    figure = figure_of(width, 5.0 if len(drawn) == 1 else 3.4 * rows + 0.5)
    for index, task in enumerate(drawn):
        _draw(figure.add_subplot(rows, columns, index + 1), task, colours)
    shown = {name: (titles or {}).get(name, name) for name in names}
    _add_legend(figure, shown, colours)
    return saved(figure, path)


def _best(task: TaskResults) -> TaskResults:
    """Return a task with its best groups, in their order; its title says if some are not drawn."""
    heading = task.title or task.name
    if len(task.groups) <= _MOST:
        return TaskResults(**{**vars(task), "title": heading})
    ranked = sorted(task.groups, key=lambda name: -final_of(task.groups[name]).value)[:_MOST]
    groups = {name: seeds for name, seeds in task.groups.items() if name in ranked}
    heading = f"{heading}: the best {_MOST} of {len(task.groups)}"
    return TaskResults(**{**vars(task), "groups": groups, "title": heading})


def _colours(names: Sequence[str]) -> dict[str, str]:
    free = itertools.cycle(_OTHERS)
    return {name: _COLOURS[name] if name in _COLOURS else next(free) for name in names}


def _draw(axes: Axes, task: TaskResults, colours: Mapping[str, str]) -> None:
    styled(axes)
    seeds = task.seeds
    counted = f"seeds {', '.join(map(str, seeds))}" if len(seeds) < 8 else f"{len(seeds)} seeds"
    title(axes, literal(f"{task.title}, {counted}"))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel("environment steps", color=INK)
    axes.set_ylabel(literal(task.measure), color=INK)
    axes.margins(x=0)
    for name in reversed(list(task.groups)):  # the first is drawn last, on top
        curves = task.groups[name]
        steps, values = interpolated(
            [curve.steps for curve in curves], [curve.values for curve in curves], _POINTS
        )
        middle, low, high = band(values)
        axes.fill_between(steps, low, high, color=colours[name], alpha=0.15, linewidth=0)
        axes.plot(steps, middle, **_line(name, colours[name]))


def _add_legend(figure: Figure, shown: Mapping[str, str], colours: Mapping[str, str]) -> None:
    """Put one legend of the groups below the panels."""
    handles = [Line2D([], [], label=literal(shown[n]), **_line(n, colours[n])) for n in shown]
    longest = max(len(label) for label in shown.values())
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=max(1, min(len(handles), int(14 * figure.get_figwidth()) // (longest + 8))),
        frameon=False,
        labelcolor=INK,
    )


def _line(name: str, colour: str) -> dict[str, Any]:
    return {
        "color": colour,
        "linewidth": 2.6 if name == "imap" else 1.7,
        "linestyle": _DASHES.get(name, "-"),
    }
