"""Study what the dead earn and how much a reward is fitted; keep each run as one small file.

    python -m benchmarks.credit                    # trains what is missing, then writes the tables
    python -m benchmarks.credit --report           # only writes the tables
    python -m benchmarks.credit --tasks 2s3z_episodic --seeds 100 101

The runs stand in `credit.toml`; `cells.py` says what a cell is. Given again, the command goes on
with the cells that are missing, the most informative first (`FIRST`), one at a time with one
thread. After every cell it writes `credit.csv`, a row a cell, and `credit.md`, a table a question.
"""

import argparse
import csv
import statistics
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.cells import ROOT, Cell, load_tasks, read_results, write_json
from benchmarks.learning import (
    FINAL_SHARE,
    Metrics,
    attempt,
    finite_mean,
    pending,
    run_cell,
    train_package,
)

STUDY_FILE = ROOT / "benchmarks" / "credit.toml"
RESULTS = ROOT / "benchmarks" / "results" / "credit"
FIRST = (
    ("smacv2_5_units_episodic", 100),
    ("smacv2_5_units_episodic", 101),
    ("nav_6_fit", 100),
    ("halfcheetah_2x3_fit", 100),
    ("smacv2_5_units_outcome", 100),
    ("smacv2_5_units_episodic", 102),
    ("simple_spread_fit", 100),
    ("smacv2_5_units_fit", 100),
    ("2s3z_episodic", 100),
    ("nav_6_fit", 101),
    ("halfcheetah_2x3_fit", 101),
    ("simple_spread_fit", 101),
    ("2s3z_episodic", 101),
    ("smacv2_5_units_outcome", 101),
    ("smacv2_5_units_fit", 101),
)
"""Tasks and seeds in the order in which they tell most; all others follow, seed by seed."""
COLUMNS = (
    "task",
    "seed",
    "steps",
    "final",
    "whole_run",
    "greedy",
    "sampled",
    "held_out_loss",
    "accuracy",
    "gradient_steps",
    "seconds",
    "reward_seconds",
    "policy_seconds",
    "commit",
)


@dataclass
class Recorder:
    """Trains a cell as the learning benchmark does, and keeps more of its metrics."""

    history: list[dict[str, float]]

    def train(self, cell: Cell) -> Iterator[Metrics]:
        """Yield the metrics of every iteration."""
        for metrics in train_package(cell):
            self.history.append(dict(metrics))
            yield metrics


def study_cell(cell: Cell) -> dict[str, Any]:
    """Return what the learning benchmark keeps, and what the fit took and reached."""
    recorder = Recorder([])
    result = run_cell(cell, recorder.train)
    history = recorder.history
    late = [m for m in history if m["steps"] > (1 - FINAL_SHARE) * cell.task.steps]
    return result | {
        "held_out_loss": finite_mean(late, "preference/held_out_loss"),
        "gradient_steps": finite_mean(history, "reward/gradient_steps"),
        "reward_seconds": round(sum(m["time/reward"] for m in history), 1),
        "policy_seconds": round(sum(m["time/policy"] for m in history), 1),
        "held_out_losses": [
            [int(m["steps"]), round(m["preference/held_out_loss"], 4)]
            for m in history
            if "preference/held_out_loss" in m
        ],
    }


def ordered(cells: Iterable[Cell]) -> list[Cell]:
    """Return the cells, those of `FIRST` first and in its order, the others by seed."""

    def place(cell: Cell) -> tuple[int, int]:
        for index, (task, seed) in enumerate(FIRST):
            if cell.seed == seed and cell.task.name.startswith(f"{task}_"):
                return index, 0
        return len(FIRST), cell.seed

    return sorted(cells, key=place)


def row(cell: dict[str, Any]) -> dict[str, Any]:
    """Return a finished cell's row of the table of all cells."""
    values = [value for _, value in cell["returns"]]
    return {
        "task": cell["task"],
        "seed": cell["seed"],
        "steps": cell["steps"],
        "final": round(cell["final"], 3),
        "whole_run": round(statistics.fmean(values), 3),
        "greedy": round(cell["evaluation"]["greedy"], 2),
        "sampled": round(cell["evaluation"]["sampled"], 2),
        "held_out_loss": rounded(cell["held_out_loss"]),
        "accuracy": rounded(cell["preference_accuracy"]),
        "gradient_steps": round(cell["gradient_steps"], 1),
        "seconds": cell["seconds"],
        "reward_seconds": cell["reward_seconds"],
        "policy_seconds": cell["policy_seconds"],
        "commit": cell["commit"],
    }


def rounded(value: float | None) -> float:
    """Return a number for a table; NaN where there is none."""
    return float("nan") if value is None else round(value, 3)


def table(title: str, steps: int, rows: Sequence[tuple[str, list[dict[str, Any]]]]) -> list[str]:
    """Return one task's table: a row a variant, every seed's number."""
    lines = [
        f"## {title}, {steps:,} steps",
        "",
        "| variant | last tenth, by seed | mean | whole run | held-out loss | steps | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for variant, cells in rows:
        found = {cell["seed"]: cell for cell in cells}
        finals = ", ".join(f"{seed}: {found[seed]['final']:.4g}" for seed in sorted(found))

        def mean(key: str, cells: Sequence[dict[str, Any]] = cells) -> float:
            return statistics.fmean(cell[key] for cell in cells)

        lines.append(
            f"| {variant} | {finals} | {mean('final'):.4g} | {mean('whole_run'):.4g} "
            f"| {mean('held_out_loss'):.3f} | {mean('gradient_steps'):.1f} "
            f"| {mean('seconds'):.0f} |"
        )
    return [*lines, ""]


def report(study: Path, folder: Path) -> None:
    """Write the table of all cells and the tables of both questions."""
    _, tasks = load_tasks(study)
    finished = read_results(folder / "cells").finished
    rows: dict[str, list[dict[str, Any]]] = {cell["task"]: [] for cell in finished}
    for cell in finished:
        rows[cell["task"]].append(row(cell))
    with (folder / "credit.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(one for name in tasks if name in rows for one in rows[name])
    by_title: dict[tuple[str, int], list[tuple[str, list[dict[str, Any]]]]] = {}
    for name in tasks:
        if name in rows:
            title, _, variant = tasks[name].title.partition(": ")
            by_title.setdefault((title, tasks[name].steps), []).append((variant, rows[name]))
    lines = [
        "# What the dead earn, and how much the reward is fitted",
        "",
        "`python -m benchmarks.credit`, algorithm `imap`, one thread on a machine of 2 cores; the",
        "settings stand in `credit.toml`, commits and evaluations in `credit.csv`. Battles: win",
        "rate; others: mean return. Last tenth: of the steps. Whole run: mean over the learning",
        "curve. Steps: gradient steps per iteration. Seeds that are missing are not trained yet.",
        "",
    ]
    for (title, steps), variants in by_title.items():
        lines += table(title, steps, variants)
    (folder / "credit.md").write_text("\n".join(lines))


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tasks", nargs="+", help="only tasks whose names begin so")
    parser.add_argument("--seeds", nargs="+", type=int, help="only these")
    parser.add_argument("--study", type=Path, default=STUDY_FILE)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--report", action="store_true", help="train nothing")
    parser.add_argument("--only-cell", nargs=3, metavar=("TASK", "ALGORITHM", "SEED"))
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train what is missing, in order; return 1 if a cell failed."""
    chosen = parse_arguments(arguments)
    study, results = chosen.study.resolve(), chosen.results.resolve()
    algorithms, tasks = load_tasks(study)
    folder = results / "cells"
    if chosen.only_cell:
        name, algorithm, seed = chosen.only_cell
        cell = Cell(tasks[name], algorithm, int(seed))
        write_json(cell.path(folder), study_cell(cell))
        return 0
    results.mkdir(parents=True, exist_ok=True)
    cells = [
        Cell(task, algorithm, seed)
        for task in tasks.values()
        for seed in task.seeds
        for algorithm in algorithms
        if (not chosen.tasks or task.name.startswith(tuple(chosen.tasks)))
        and (not chosen.seeds or seed in chosen.seeds)
    ]
    failed = 0
    missing = [] if chosen.report else ordered(pending(cells, folder))
    print(f"{len(missing)} of {len(cells)} cells to train", flush=True)
    for cell in missing:
        only = ["--only-cell", cell.task.name, cell.algorithm, str(cell.seed)]
        paths = ["--study", str(study), "--results", str(results)]
        command = [sys.executable, "-m", "benchmarks.credit", *paths, *only]
        failed += not attempt(cell, command, folder)
        report(study, results)
    report(study, results)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
