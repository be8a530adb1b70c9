"""Make the tables and figures of the learning benchmark from its cells.

    python -m benchmarks.aggregate

Writes `results/learning/README.md`, one figure per task and one of all. For every task and
algorithm: the interquartile mean over seeds of the final true return, and its 95 % bootstrap
interval, as `marl compare` states them. The verdict calls two algorithms apart only where these
intervals do not touch.
"""

import argparse
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
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
from marl.reports.comparison import Seed, TaskResults, markdown
from marl.reports.comparison_files import draw_tasks
from marl.reports.estimates import (
    LEAST_SEEDS,
    REPETITIONS,
    Estimate,
    estimate,
    number,
    shown,
    verdict,
)

OURS = "imap"
ALGORITHM_TITLES = {
    "imap": "IMAP",
    "slf": "SL, factored",
    "ipl": "IPL, central",
    "sl": "SL, central",
    "rrd": "RRD, factored",
    "rrd_central": "RRD, central",
    "ircr": "IRCR",
    "rudder": "RUDDER",
    "arel": "AREL",
    "stas": "STAS",
    "tar2": "TAR2",
    "dense": "dense oracle",
    "sparse": "sparse MAPPO",
}

Groups = Mapping[str, Mapping[str, Sequence[dict[str, Any]]]]
"""Finished cells by task and algorithm, ordered by seed."""


def in_order(names: Collection[str]) -> list[str]:
    """Return algorithms in the order of tables and legends: ours first, unknown ones last."""
    known = [name for name in ALGORITHM_TITLES if name in names]
    return known + sorted(set(names) - set(known))


def compared(
    name: str, title: str, measured: str, entry: Mapping[str, Sequence[dict[str, Any]]]
) -> TaskResults:
    """Return the cells of one task, by algorithm or setting, as `marl compare` knows runs."""
    groups = {
        group: [
            Seed(
                number=cell["seed"],
                steps=np.array([step for step, _ in cell["returns"]]),
                values=np.array([value for _, value in cell["returns"]]),
                final=cell["final"],
            )
            for cell in entry[group]
        ]
        for group in entry
    }
    until = max(int(seed.steps[-1]) for seeds in groups.values() for seed in seeds)
    return TaskResults(
        name=name, groups=groups, until=until, measure=f"true {measured}", title=title
    )


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
        f"({REPETITIONS} samples).",
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
    figures = chosen.results / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    panels = [
        compared(
            task,
            title_of(task, tasks),
            measured(task, tasks),
            {name: groups[task][name] for name in in_order(groups[task])},
        )
        for task in in_file_order(groups, tasks)
    ]
    for task in panels:
        draw_tasks([task], figures / f"{task.name}.png", ALGORITHM_TITLES)
    draw_tasks(panels, figures / "all.png", ALGORITHM_TITLES)
    page = chosen.results / "README.md"
    page.write_text(report(results, groups, tasks, commands_for(chosen)))
    print(f"{len(results.finished)} cells, {len(results.failed)} failed: {page}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
