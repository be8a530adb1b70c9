"""Make the tables and figures of the learning benchmark from its cells.

    python -m benchmarks.aggregate

Writes `results/learning/README.md`, one figure per task and one of all. For every task and
algorithm: the interquartile mean over seeds of the final true return, and its 95 % bootstrap
interval, both by rliable (Agarwal et al. 2021). The verdict calls two algorithms apart only
where these intervals do not touch.
"""

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cells import (
    RESULTS,
    ROOT,
    TASKS_FILE,
    Results,
    Task,
    load_tasks,
    read_results,
)
from benchmarks.curves import ALGORITHM_TITLES, Panel, draw_curves, in_order

OURS = "imap"
REPETITIONS = 2000
"""Bootstrap samples behind an interval."""
LEAST_SEEDS = 3
"""With fewer seeds no interval is stated."""


@dataclass(frozen=True)
class Estimate:
    """Where the typical seed of one algorithm ends on one task."""

    iqm: float
    """Interquartile mean of the seeds' final returns."""
    low: float
    """Lower end of its 95 % interval; NaN below `LEAST_SEEDS`."""
    high: float
    """Upper end."""


Groups = Mapping[str, Mapping[str, Sequence[dict[str, Any]]]]
"""Finished cells by task and algorithm, ordered by seed."""


def estimate(finals: Sequence[float]) -> Estimate:
    """Return the interquartile mean over seeds and its 95 % percentile bootstrap interval.

    The same seeds give the same interval, whatever was estimated before.
    """
    from rliable import library, metrics

    scores = {"seeds": np.asarray(finals, dtype=np.float64)[:, np.newaxis]}  # (seeds, one task)
    if len(finals) < LEAST_SEEDS:
        return Estimate(float(metrics.aggregate_iqm(scores["seeds"])), np.nan, np.nan)
    np.random.seed(0)  # noqa: NPY002 - rliable draws from NumPy's global generator
    points, intervals = library.get_interval_estimates(
        scores, lambda sample: np.array([metrics.aggregate_iqm(sample)]), reps=REPETITIONS
    )
    low, high = intervals["seeds"][:, 0]
    return Estimate(float(points["seeds"][0]), float(low), float(high))


def verdict(ours: Estimate, other: Estimate) -> str:
    """Return `above` or `below` where the intervals are apart, else `not apart`; `?` without."""
    if np.isnan([ours.low, other.low]).any():
        return "?"
    if ours.low > other.high:
        return "above"
    return "below" if ours.high < other.low else "not apart"


def grouped(cells: Sequence[dict[str, Any]]) -> Groups:
    """Return the cells by task and algorithm; one task's cells must share their budget."""
    groups: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for cell in sorted(cells, key=lambda cell: int(cell["seed"])):
        groups.setdefault(cell["task"], {}).setdefault(cell["algorithm"], []).append(cell)
    for task, algorithms in groups.items():
        budgets = {cell["steps"] for entries in algorithms.values() for cell in entries}
        if len(budgets) > 1:
            raise ValueError(
                f"cells of {task} were trained for {sorted(budgets)} steps; a table compares one "
                "budget, so train the others again"
            )
    return groups


def report(results: Results, groups: Groups, tasks: Mapping[str, Task], commands: str) -> str:
    """Return the Markdown page."""
    estimates = {
        task: {name: estimate([cell["final"] for cell in cells]) for name, cells in entry.items()}
        for task, entry in groups.items()
    }
    names = in_order({name for entry in groups.values() for name in entry})
    parts = [
        "# Learning benchmark",
        "Mean true return (win rate, where the task says so) of the episodes that ended in the "
        "last tenth of training: the interquartile mean over seeds and, in brackets, its 95 % "
        "stratified bootstrap interval "
        f"({REPETITIONS} samples, rliable).",
        overview(estimates, names, tasks),
        f"`{OURS}` against each other algorithm: *above* or *below* where the two intervals are "
        f"apart, *?* where one has fewer than {LEAST_SEEDS} seeds.",
        verdicts(estimates, names, tasks),
        "![Learning curves](figures/all.png)",
        provenance(results.finished, commands),
        *(
            section(
                title_of(task, tasks), task, groups[task], estimates[task], measured(task, tasks)
            )
            for task in in_file_order(groups, tasks)
        ),
        failures(results.failed),
    ]
    return "\n\n".join(parts) + "\n"


def overview(
    estimates: Mapping[str, Mapping[str, Estimate]],
    names: Sequence[str],
    tasks: Mapping[str, Task],
) -> str:
    """Return the table of all estimates: one row per task, one column per algorithm."""
    rows = [
        [
            title_of(task, tasks),
            *(shown(estimates[task][name]) if name in estimates[task] else "" for name in names),
        ]
        for task in in_file_order(estimates, tasks)
    ]
    return markdown(["task", *(ALGORITHM_TITLES.get(name, name) for name in names)], rows)


def verdicts(
    estimates: Mapping[str, Mapping[str, Estimate]],
    names: Sequence[str],
    tasks: Mapping[str, Task],
) -> str:
    """Return the table of verdicts: our algorithm against every other."""
    others = [name for name in names if name != OURS]
    rows = []
    for task in in_file_order(estimates, tasks):
        entry = estimates[task]
        cells = [
            verdict(entry[OURS], entry[name]) if OURS in entry and name in entry else ""
            for name in others
        ]
        rows.append([title_of(task, tasks), *cells])
    return markdown(["task", *(ALGORITHM_TITLES.get(name, name) for name in others)], rows)


def section(
    title: str,
    task: str,
    entry: Mapping[str, Sequence[dict[str, Any]]],
    estimates: Mapping[str, Estimate],
    measured: str,
) -> str:
    """Return one task's part: its figure and every seed's number."""
    kinds = sorted({kind for cells in entry.values() for c in cells for kind in c["evaluation"]})
    rows = []
    for name in in_order(entry):
        cells = entry[name]
        rows.append(
            [
                ALGORITHM_TITLES.get(name, name),
                shown(estimates[name]),
                "; ".join(f"{cell['seed']}: {number(cell['final'])}" for cell in cells),
                mean_of(cells, "reward_correlation"),
                mean_of(cells, "preference_accuracy"),
                *(evaluation_of(cells, kind) for kind in kinds),
                f"{np.mean([cell['seconds'] for cell in cells]):.0f}",
            ]
        )
    head = ["algorithm", measured, "each seed", "reward correlation", "preference accuracy"]
    head += [*(f"{kind} return" for kind in kinds), "seconds a seed"]
    steps = next(iter(entry.values()))[0]["steps"]
    figure = f"![{title}](figures/{task}.png)"
    return "\n\n".join([f"## {title}", f"{steps:,} steps.", figure, markdown(head, rows)])


def provenance(cells: Sequence[dict[str, Any]], commands: str) -> str:
    """Return the commands, and the commits and machines of the cells with their numbers."""
    lines = [f"```\n{commands}\n```", ""]
    for key in ("commit", "machine"):
        counted = Counter(cell[key] for cell in cells).most_common()
        listed = "; ".join(f"{value} ({count} cells)" for value, count in counted)
        lines.append(f"- {key}: {listed}")
    seeds = sorted({cell["seed"] for cell in cells})
    lines.append(f"- seeds: {', '.join(map(str, seeds))}; each cell had one thread")
    lines.append(
        "- seconds are wall time, beside other work and with pauses; they say nothing about speed"
    )
    return "\n".join(lines)


def failures(failed: Sequence[dict[str, Any]]) -> str:
    """Return the list of cells that failed, with the last line of each error."""
    lines = [
        f"- {cell['task']}, {cell['algorithm']}, seed {cell['seed']}: "
        f"{(cell['traceback'].strip().splitlines() or ['no message'])[-1]}"
        for cell in failed
    ]
    return "\n".join(["## Failed cells", "", *(lines or ["None."])])


def mean_of(cells: Sequence[dict[str, Any]], key: str) -> str:
    """Return the mean of a number over the seeds that have it."""
    values = [cell[key] for cell in cells if cell[key] is not None]
    return f"{np.mean(values):.2f}" if values else ""


def evaluation_of(cells: Sequence[dict[str, Any]], kind: str) -> str:
    """Return the mean over seeds of the evaluation return of that kind, where there is one."""
    values = [cell["evaluation"][kind] for cell in cells if kind in cell["evaluation"]]
    return number(float(np.mean(values))) if values else ""


def in_file_order(found: Mapping[str, object], tasks: Mapping[str, Task]) -> list[str]:
    """Return the tasks that were found as the tasks file orders them, unknown ones last."""
    known = [name for name in tasks if name in found]
    return known + sorted(set(found) - set(known))


def title_of(task: str, tasks: Mapping[str, Task]) -> str:
    """Return a task's title, or its name where the tasks file no longer has it."""
    return tasks[task].title if task in tasks else task


def measured(task: str, tasks: Mapping[str, Task]) -> str:
    """Return what a task is measured by, in words."""
    return tasks[task].measured if task in tasks else "return"


def shown(value: Estimate) -> str:
    """Return an estimate as `iqm [low, high]`."""
    if np.isnan(value.low):
        return number(value.iqm)
    return f"{number(value.iqm)} [{number(value.low)}, {number(value.high)}]"


def number(value: float) -> str:
    """Return a return with the digits that matter: two below 100, none above."""
    return f"{value:,.2f}" if abs(value) < 100 else f"{value:,.0f}"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def commands_for(chosen: argparse.Namespace) -> str:
    """Return the commands that train the cells and make the page."""
    if (chosen.tasks_file, chosen.results) == (TASKS_FILE, RESULTS):
        return "python -m benchmarks.learning\npython -m benchmarks.aggregate"
    tasks, results = (
        path.resolve().relative_to(ROOT) if path.resolve().is_relative_to(ROOT) else path
        for path in (chosen.tasks_file, chosen.results)
    )
    return (
        f"python -m benchmarks.learning --tasks-file {tasks} --cells {results}/cells\n"
        f"python -m benchmarks.aggregate --tasks-file {tasks} --results {results}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page and the figures."""
    parser = argparse.ArgumentParser(description="Make the learning benchmark's tables.")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder that holds cells/")
    parser.add_argument("--tasks-file", type=Path, default=TASKS_FILE)
    chosen = parser.parse_args(arguments)
    _, tasks = load_tasks(chosen.tasks_file)
    results = read_results(chosen.results / "cells")
    if not results.finished:
        raise SystemExit(f"no finished cells under {chosen.results / 'cells'}; train some first")
    groups = grouped(results.finished)
    panels = [
        Panel(task, title_of(task, tasks), groups[task], measured(task, tasks))
        for task in in_file_order(groups, tasks)
    ]
    draw_curves(panels, chosen.results / "figures")
    page = chosen.results / "README.md"
    page.write_text(report(results, groups, tasks, commands_for(chosen)))
    print(f"{len(results.finished)} cells, {len(results.failed)} failed: {page}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
