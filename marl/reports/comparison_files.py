"""The files of a comparison: the page, its table, and the picture.

The picture shows interquartile means over seeds with their intervals, by step.
"""

import csv
import io
import itertools
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter

from marl.reports.comparison import (
    LONGEST_NAME,
    MEASURED_TOO,
    ComparisonError,
    Row,
    Run,
    TaskResults,
    final_of,
    improvements,
    markdown,
    measured,
    rows_of,
    tasks_of,
    text,
)
from marl.reports.estimates import (
    LEAST_SEEDS,
    REPETITIONS,
    band,
    interpolated,
    number,
    shown,
    verdict,
)
from marl.reports.plots import INK, figure_of, literal, saved, styled, title
from marl.utils.files import atomic_write, make_folder, output
from marl.utils.text import one_line

_COLOURS = {
    "imap": "#d1495b",
    "slf": "#e9a23b",
    "ipl": "#3d85b0",
    "sl": "#5fa777",
    "dense": "#2b2d42",
    "sparse": "#8d99ae",
}
"""Of algorithms, the same in every picture."""
_OTHERS = (
    *("#7b5ea7", "#00a6a6", "#b5651d", "#c77dff", "#555b6e"),
    *("#1b7f5c", "#f28482", "#a3b18a", "#4361ee", "#7f4f24"),
    *_COLOURS.values(),
)
_DASHES = {"dense": (0, (5, 2)), "sparse": (0, (1, 1.5))}
_POINTS, _COLUMNS, _MOST = 100, 3, 10
_MOST_ENDS, _LARGEST_TABLE = 6, 2**20
RETURN = "return/mean"


def write_comparison(
    runs: Sequence[Run],
    folder: Path,
    *,
    metric: str | None = None,
    until: int | None = None,
    level: float | None = None,
    against: str = "",
    notes: Sequence[str] = (),
) -> str:
    """Write ``comparison.md``, ``.csv`` and ``.png`` of some runs, and return the page.

    Without a `metric`, by what each task says, or the mean return. Several processes may write to
    one folder at a time.
    """
    tasks, left_out = tasks_of(runs, metric, until)
    notes = [*notes, *left_out]
    names = dict.fromkeys(name for task in tasks for name in task.groups)
    if against and against not in names:
        notes.append(f"against: no group is called {against}; there are {', '.join(names)}")
    if not tasks:
        raise ComparisonError("\n".join(["there is nothing to compare", *notes]))
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerows([CSV_COLUMNS, *csv_rows(tasks, level)])
    with output(folder, "choose another --out"):
        make_folder(folder)
        content = page(tasks, level, notes, "comparison.png", against)
        with TemporaryDirectory(prefix=".comparison_", dir=folder) as name:
            own = Path(name)
            draw_tasks(tasks, own / "comparison.png")
            atomic_write(own / "comparison.csv", table.getvalue().encode())
            atomic_write(own / "comparison.md", content.encode())
            for path in sorted(own.iterdir()):
                os.replace(path, folder / path.name)
    return content


def page(
    tasks: Sequence[TaskResults],
    level: float | None,
    notes: Sequence[str],
    picture: str,
    against: str = "",
) -> str:
    """Return the comparison as Markdown.

    `picture` is the file of its curves, if there is one; `against` the group that each other is
    said to be above or below of.
    """
    first = [against] if any(against in task.groups for task in tasks) else []
    names = list(dict.fromkeys([*first, *(name for task in tasks for name in task.groups)]))
    parts = ["# Comparison", *([f"![Learning curves]({picture})"] if picture else [])]
    if len(tasks) > 1:
        parts += ["At the end of each task:", _overview(tasks, names)]
    if first:
        parts += _verdicts(tasks, names, against)
    for task in tasks:
        parts += _section(task, rows_of(task, level))
    if len(tasks) > 1:
        parts += [
            "## All environments",
            "Probability that a seed of the row ends above one of the column, mean over the "
            "environments that both were trained in:",
            _matrix(tasks, names),
        ]
    parts.append(
        "In brackets: 95 % stratified bootstrap interval over seeds "
        f"({REPETITIONS} samples); none below {LEAST_SEEDS} seeds."
    )
    lines = [*_origins(tasks), *(f"- {text(note)}" for note in notes)]
    if lines:
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _overview(tasks: Sequence[TaskResults], names: Sequence[str]) -> str:
    """Return the table of where all groups end: a row a task."""
    rows = [
        [
            text(task.title or task.name),
            *(shown(final_of(task.groups[n])) if n in task.groups else "" for n in names),
        ]
        for task in tasks
    ]
    return markdown(["task", *map(text, names)], rows)


def _verdicts(tasks: Sequence[TaskResults], names: Sequence[str], against: str) -> list[str]:
    """Return the tables of how one group stands beside all others, task by task and over all."""
    others = [name for name in names if name != against]
    rows = [
        [
            text(task.title or task.name),
            *(
                verdict(final_of(task.groups[against]), final_of(task.groups[other]))
                if other in task.groups
                else ""
                for other in others
            ),
        ]
        for task in tasks
        if against in task.groups
    ]
    found = improvements(tasks, [against, *others], rows=[against])
    over_all = [shown(found[pair]) if (pair := (against, n)) in found else "" for n in others]
    return [
        f"`{text(against)}` is *above* or *below* another where their intervals are apart, *?* "
        f"where one has fewer than {LEAST_SEEDS} seeds; last, the probability that one of its "
        "seeds ends above one of the other's, mean over the tasks of both:",
        markdown(["task", *map(text, others)], [*rows, ["probability of improvement", *over_all]]),
    ]


def _origins(tasks: Sequence[TaskResults]) -> Iterator[str]:
    """Yield the commits and the machines of kept runs, with their numbers of runs."""
    seeds = [seed for task in tasks for group in task.groups.values() for seed in group]
    known = [seed.origin for seed in seeds if seed.origin]
    for place, what in enumerate(("commit", "machine")):
        counted = Counter(origin[place] for origin in known).most_common()
        if counted:
            yield f"- {what}: " + "; ".join(f"{text(v)} ({n} runs)" for v, n in counted)


def _section(task: TaskResults, rows: Sequence[Row]) -> Iterator[str]:
    level = rows[0].level
    yield f"## {text(task.title or task.name)}"
    yield (
        f"Up to {task.until:,} steps. At the end: {task.measure} of the episodes that ended in the "
        "last tenth of them, interquartile mean over seeds. Whole run: mean of the learning curve. "
        f"Steps to {number(level)}: upper median over seeds."
    )
    head = ["group", "seeds", "at the end", "whole run", f"steps to {number(level)}"]
    yield markdown(
        head,
        [
            [
                text(row.group),
                ", ".join(map(str, row.seeds)),
                shown(row.final),
                shown(row.whole),
                f"{row.steps_to_level:,.0f}"
                if math.isfinite(row.steps_to_level)
                else "not reached",
            ]
            for row in rows
        ],
    )
    told = [name for name in MEASURED_TOO if any(name in row.numbers for row in rows)]
    if told:
        yield "Also measured, means over seeds:"
        yield markdown(
            ["group", "each seed", *(MEASURED_TOO[name] for name in told)],
            [
                [
                    text(row.group),
                    "; ".join(
                        f"{seed}: {number(final)}"
                        for seed, final in zip(row.seeds, row.finals, strict=True)
                    ),
                    *(number(row.numbers[name]) if name in row.numbers else "" for name in told),
                ]
                for row in rows
            ],
        )
    if len(rows) > 1:
        yield "Probability that a seed of the row ends above one of the column:"
        yield _matrix([task], [row.group for row in rows])


def _matrix(tasks: Sequence[TaskResults], names: Sequence[str]) -> str:
    """Return the table of probabilities of improvement between all groups, at most ten."""
    names = names[:10]
    found = improvements(tasks, names)
    rows = [
        [text(ours), *(shown(found[pair]) if (pair := (ours, n)) in found else "" for n in names)]
        for ours in names
    ]
    return markdown(["above", *map(text, names)], rows)


CSV_COLUMNS = (
    "environment",
    "group",
    "seeds",
    "steps",
    "measure",
    "final_iqm",
    "final_low",
    "final_high",
    "whole_run_iqm",
    "whole_run_low",
    "whole_run_high",
    "level",
    "seeds_at_level",
    "median_steps_to_level",
    "finals",
    *MEASURED_TOO,
)


def csv_rows(tasks: Sequence[TaskResults], level: float | None) -> list[list[object]]:
    """Return a row under `CSV_COLUMNS` for each group; an unknown number is empty."""
    rows: list[list[object]] = []
    for task in tasks:
        for row in rows_of(task, level):
            ends = (row.final, row.whole)
            numbers = [n for e in ends for n in (e.value, e.low, e.high)]
            numbers += [row.level, row.reached, row.steps_to_level]
            rows.append(
                [
                    one_line(task.name),
                    row.group,
                    " ".join(map(str, row.seeds)),
                    task.until,
                    task.measure,
                    *(n if math.isfinite(n) else "" for n in numbers),
                    " ".join(map(repr, row.finals)),
                    *(row.numbers.get(name, "") for name in MEASURED_TOO),
                ]
            )
    return rows


def known_ends(folder: Path, environment: str) -> dict[str, float]:
    """Return the returns at which groups end in an environment, by ``comparison.csv`` of a folder.

    The highest ones, highest first; none where there is no such table of returns.
    """
    path = folder / "comparison.csv"
    if not path.is_file() or path.stat().st_size > _LARGEST_TABLE:
        return {}
    ends: dict[str, float] = {}
    try:
        for row in csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))):
            is_ours = (row["environment"], row["measure"]) == (environment, measured(RETURN))
            if is_ours and row["final_iqm"]:
                ends[one_line(row["group"], LONGEST_NAME)] = float(row["final_iqm"])
    except (OSError, UnicodeDecodeError, csv.Error, KeyError, TypeError, ValueError):
        return {}  # it is no table of ours
    finite = [(name, end) for name, end in ends.items() if math.isfinite(end)]
    return dict(sorted(finite, key=lambda item: -item[1])[:_MOST_ENDS])


def draw_tasks(tasks: Sequence[TaskResults], path: Path) -> Path:
    """Write a picture with a panel for each environment, and return its path.

    Of an environment's groups at most ten are drawn, those that end highest.
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
    _add_legend(figure, colours)
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


def seeds_in_words(seeds: Sequence[int]) -> str:
    """Return the seeds for a title: their range, their list if it has gaps, or their number."""
    if len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[-1] + 1)):
        return f"seeds {seeds[0]} to {seeds[-1]}"
    return f"seeds {', '.join(map(str, seeds))}" if len(seeds) < 8 else f"{len(seeds)} seeds"


def _draw(axes: Axes, task: TaskResults, colours: Mapping[str, str]) -> None:
    styled(axes)
    title(axes, literal(f"{task.title}, {seeds_in_words(task.seeds)}"))
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
        marker = "o" if steps[0] == steps[-1] else ""  # a line of one point is not seen
        axes.plot(steps, middle, marker=marker, **_line(name, colours[name]))


def _add_legend(figure: Figure, colours: Mapping[str, str]) -> None:
    """Put one legend of the groups below the panels."""
    handles = [Line2D([], [], label=literal(n), **_line(n, colours[n])) for n in colours]
    longest = max(map(len, colours))
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
