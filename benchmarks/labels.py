"""What labels cost: teachers that err, few questions and how they are chosen, a cold start.

    python -m benchmarks.labels --jobs 2
    python -m benchmarks.labels --parts errors --seeds 0

Trains the missing cells of the files in `labels_tasks/` as `benchmarks.learning` does and writes
`results/labels/README.md` with its figures: for every setting the mean true return (or win rate)
of the last tenth of training. `--report` only writes.

Axes: B pairs.
"""

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import learning
from benchmarks.aggregate import compared, failures, mean_of, provenance
from benchmarks.cells import ROOT, Results, Task, load_tasks, read_results
from marl import EpisodePairs
from marl.reports.comparison import markdown
from marl.reports.comparison_files import draw_tasks
from marl.reports.estimates import number

PARTS = ("errors", "queries", "cold_start")
"""Files of `labels_tasks/`, in the order of the page."""
RESULTS = ROOT / "benchmarks" / "results" / "labels"
NUM_AGENTS = 6
ARRIVED = 2
"""Column of the fact ``arrived`` of `particles/nav_6`."""


def all_arrived(pairs: EpisodePairs) -> Tensor:
    """Return (B,) labels that prefer episodes in which everyone arrived: early on, all ties."""
    first, second = (
        (side.facts[:, ARRIVED] == NUM_AGENTS).to(torch.float32)
        for side in (pairs.first, pairs.second)
    )
    labels: Tensor = 0.5 + 0.5 * (first - second)
    return labels


def tasks_file(part: str) -> Path:
    """Return where the settings of a part stand."""
    return ROOT / "benchmarks" / "labels_tasks" / f"{part}.toml"


@dataclass(frozen=True)
class Figure:
    """Settings that are compared with each other."""

    name: str
    title: str
    cells: Mapping[str, list[dict[str, Any]]]
    """Finished cells by setting."""
    measured: str


def panels_of(results: Results, tasks: Mapping[str, Task]) -> list[Figure]:
    """Return one panel per figure, with the cells of each curve; in the tasks files' order."""
    figures: dict[str, dict[str, list[dict[str, Any]]]] = {}
    order = list(tasks)
    measures = {}
    for cell in sorted(results.finished, key=lambda c: (order.index(c["task"]), c["seed"])):
        task = tasks[cell["task"]]
        figure, _, curve = task.title.partition(": ")
        measures[figure] = task.measured
        figures.setdefault(figure, {}).setdefault(curve, []).append(cell)
    return [
        Figure(re.sub(r"\W+", "_", figure).strip("_"), figure, curves, measures[figure])
        for figure, curves in figures.items()
    ]


def report(results: Results, panels: Sequence[Figure]) -> str:
    """Return the Markdown page."""
    parts = [
        "# What labels cost",
        "IMAP: mean true return (win rate, where the title says so) of the episodes that ended in "
        "the last tenth of training, over seeds, with the least and the greatest. On "
        "`particles/nav_6` (150,000 steps: 94 iterations, 6,000 episodes) standing still gives "
        "-26.1, greedy pursuit -6.4. HalfCheetah 2x3 was trained for 200,000 steps, SMAX 3m for "
        "400,000.",
        "Accuracy is measured against the teacher's own answers on held-out pairs, so a teacher "
        "with 30 % mistakes allows 70 % at most. Whether a teacher errs about a pair is fixed by "
        "the pair: asked again, it errs again.",
    ]
    for panel in panels:
        rows = []
        for name, cells in panel.cells.items():
            finals = [cell["final"] for cell in cells]
            mean, least, most = (number(float(f(finals))) for f in (np.mean, np.min, np.max))
            rows.append(
                [
                    name,
                    f"{mean} [{least}, {most}]",
                    "; ".join(f"{cell['seed']}: {number(cell['final'])}" for cell in cells),
                    mean_of(cells, "reward_correlation"),
                    mean_of(cells, "preference_accuracy"),
                    f"{np.mean([cell['seconds'] for cell in cells]):.0f}",
                ]
            )
        head = ["setting", panel.measured, "each seed", "reward correlation", "accuracy", "seconds"]
        parts += [f"## {panel.title}", f"![{panel.title}](figures/{panel.name}.png)"]
        parts.append(markdown(head, rows))
    commands = "python -m benchmarks.labels"
    parts += ["## How", provenance(results.finished, commands), failures(results.failed)]
    return "\n\n".join(parts) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Train what is missing and write the page; return 1 if a cell failed."""
    parser = argparse.ArgumentParser(description="Train the missing cells of the label benchmark.")
    parser.add_argument("--jobs", type=int, default=2, help="cells trained at a time")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="only these")
    parser.add_argument("--tasks", nargs="+", help="only these settings of one part")
    parser.add_argument("--seeds", nargs="+", type=int, help="instead of those of the tasks file")
    parser.add_argument("--report", action="store_true", help="train nothing, write the page")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of cells and page")
    chosen = parser.parse_args(arguments)
    status = 0
    for part in () if chosen.report else chosen.parts:
        status |= learning.main(
            [
                *("--tasks-file", str(tasks_file(part)), "--cells", str(chosen.results / "cells")),
                *("--jobs", str(chosen.jobs)),
                *(["--tasks", *chosen.tasks] if chosen.tasks else []),
                *(["--seeds", *map(str, chosen.seeds)] if chosen.seeds else []),
            ]
        )
    results = read_results(chosen.results / "cells")
    tasks = {n: t for part in PARTS for n, t in load_tasks(tasks_file(part))[1].items()}
    panels = panels_of(results, tasks)
    figures = chosen.results / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    for panel in panels:
        task = compared(panel.name, panel.title, panel.measured, panel.cells)
        draw_tasks([task], figures / f"{panel.name}.png")
    (chosen.results / "README.md").write_text(report(results, panels))
    return status


if __name__ == "__main__":
    raise SystemExit(main())
