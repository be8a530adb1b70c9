"""Ask what is learned once and used again: offline, calibrated, steered, weak to strong, warm.

    python -m benchmarks.transfer             # trains what is missing, then writes the tables
    python -m benchmarks.transfer --report    # only writes the tables
    python -m benchmarks.transfer --tasks calibration_nav_6 --seeds 200 201
    python -m benchmarks.transfer --quick     # everything once, two iterations a run

Questions, tasks, variants and seeds stand in `transfer.toml`, what a cell does in
`transfer_cells.py`. Given again, the command goes on with the cells that are missing, one at a time
with one thread; what the variants of a seed share lies in `runs/transfer`, which is to be removed
where code or settings have changed. After every cell it writes `transfer.csv`, a row a cell, and
`transfer.md`, a table a task with what is read from it, `transfer_verdicts.toml`.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import ROOT
from benchmarks.transfer_cells import QUESTIONS, QUICK, Cell, Sizes, TransferTask, quick, run_cell
from marl.reports.estimates import estimate, shown
from marl.utils.files import atomic_write

TASKS_FILE = ROOT / "benchmarks" / "transfer.toml"
VERDICTS_FILE = ROOT / "benchmarks" / "transfer_verdicts.toml"
RESULTS = ROOT / "benchmarks" / "results" / "transfer"
WORK = ROOT / "runs" / "transfer"
COLUMNS = ("task", "variant", "seed", "steps", "greedy", "sampled", "final", "seconds", "commit")
BY_STEP = ("correlation", "roughness", "roughness of the fact")
"""What is measured of the rewards of steps, over episodes that were not cut."""
HEADINGS = {
    "offline": "How far does a policy come that was learned from a dataset alone?",
    "calibration": "Does a scale help preferences?",
    "contrast": "What does a contrast do that sharpening does not?",
    "weak_to_strong": "Can a weak team teach a strong one?",
    "warm_start": "What is a start worth, after preference learning?",
    "reward_transfer": "What does a reward need to label another run?",
    "segments": "Are answers about parts of episodes enough?",
}


def load(path: Path) -> dict[str, TransferTask]:
    """Return the tasks of a file by name."""
    tasks = {}
    for name, entry in tomllib.loads(path.read_text()).items():
        lists = {key: tuple(entry[key]) for key in ("seeds", "variants")}
        task = TransferTask(**{**entry, **lists, "name": name})
        if task.question not in QUESTIONS:
            known = ", ".join(QUESTIONS)
            raise ValueError(f"{path}, [{name}]: question {task.question!r}, expected {known}")
        tasks[name] = task
    return tasks


def ordered(tasks: Sequence[TransferTask]) -> list[Cell]:
    """Return all cells: every variant of a task and a seed, then its other seeds; tasks in turn."""
    return [
        Cell(task, variant, seed)
        for task in tasks
        for seed in task.seeds
        for variant in task.variants
    ]


def read_cells(folder: Path) -> list[dict[str, Any]]:
    """Return all finished cells under a folder, ordered by task, variant and seed."""
    paths = [path for path in folder.glob("*/*/seed_*.json") if path.stem[5:].isdecimal()]
    found = [json.loads(path.read_text()) for path in paths]
    return sorted(found, key=lambda cell: (cell["task"], cell["algorithm"], cell["seed"]))


def write_cell(cell: Cell, content: dict[str, Any], folder: Path) -> None:
    """Write a finished cell atomically."""
    path = cell.path(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, (json.dumps(content, allow_nan=False) + "\n").encode())


def pending(cells: Iterable[Cell], folder: Path) -> list[Cell]:
    """Return the cells without a result; one of another budget is an error, not a result."""
    missing = []
    for cell in cells:
        path = cell.path(folder)
        if not path.exists():
            missing.append(cell)
            continue
        recorded = json.loads(path.read_text())["steps"]
        if recorded != cell.task.steps:
            raise ValueError(
                f"{path} was trained for {recorded} steps, the tasks file asks for "
                f"{cell.task.steps}; remove the file to train it again"
            )
    return missing


def attempt(cell: Cell, command: Sequence[str], folder: Path) -> bool:
    """Run one cell's process; say whether its result is there, and the error if not."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    succeeded = done.returncode == 0 and cell.path(folder).exists()
    print(f"{'done  ' if succeeded else 'FAILED'} {cell}", flush=True)
    if not succeeded:
        print(done.stderr[-8000:], flush=True)
    return succeeded


def row(cell: dict[str, Any]) -> dict[str, Any]:
    """Return a finished cell's row of the table of all cells."""
    values = {key: cell.get(key, float("nan")) for key in ("greedy", "sampled", "final")}
    rounded = {key: round(value, 4) for key, value in values.items()}
    kept = {key: cell[key] for key in ("task", "seed", "steps", "seconds", "commit")}
    return {**kept, "variant": cell["algorithm"], **rounded}


def table(task: TransferTask, cells: Sequence[dict[str, Any]]) -> list[str]:
    """Return a task's table: a row a variant, over its seeds and by seed."""
    if task.question == "contrast":
        return curves(task, cells)
    more = BY_STEP if task.question == "segments" else ()
    lines = [
        f"| {' | '.join(('variant', 'seeds', 'sampled', 'greedy', *more, 'sampled, by seed'))} |",
        f"|{' --- |' * (5 + len(more))}",
    ]
    for variant in task.variants:
        found = {cell["seed"]: cell for cell in cells if cell["algorithm"] == variant}
        if found:
            by_seed = ", ".join(f"{seed}: {found[seed]['sampled']:.4g}" for seed in sorted(found))
            keys = ("sampled", "greedy", *more)
            parts = [over([cell[key] for cell in found.values()]) for key in keys]
            lines.append(f"| {variant} | {len(found)} | {' | '.join(parts)} | {by_seed} |")
    return lines


@dataclass(frozen=True, kw_only=True)
class Row:
    """A way of acting: each seed's measure and second preference."""

    team: str
    strength: float | None
    acts: str
    """How its actions are chosen: sampled or greedy."""
    values: dict[int, Sequence[float]]

    def mean(self, place: int) -> float:
        """Return the interquartile mean of the measure (0) or of the second preference (1)."""
        return estimate([value[place] for value in self.values.values()]).value


def curves(task: TransferTask, cells: Sequence[dict[str, Any]]) -> list[str]:
    """Return the table of steered teams beside their controls, and the front of both measures."""
    rows = steered(task, cells)
    sign = -1.0 if task.lower_is_better else 1.0
    points = [(row.mean(0), sign * row.mean(1)) for row in rows]
    lines = [
        f"`{task.fact}`: {'less' if task.lower_is_better else 'more'} is better. Apart from",
        "sharpening: the measure minus that of sharpening with the same strength, by seed. Front:",
        "no other row is better at one of both measures and as good at the other, in the mean.",
        "",
        f"| team | strength | acts | seeds | {task.measured} | `{task.fact}` "
        "| apart from sharpening | front |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row, point in zip(rows, points, strict=True):
        parts = [over([value[place] for value in row.values.values()]) for place in (0, 1)]
        strength = "" if row.strength is None else f"{row.strength:g}"
        on_front = "yes" if not any(dominates(other, point) for other in points) else ""
        cells_of_row = [row.team, strength, row.acts, len(row.values), *parts]
        lines.append(f"| {' | '.join(map(str, cells_of_row))} | {apart(row, rows)} | {on_front} |")
    return lines


def steered(task: TransferTask, cells: Sequence[dict[str, Any]]) -> list[Row]:
    """Return the rows of a contrast's table: the base, sharpening, greedy and what is steered."""

    def row(team: str, strength: float | None, acts: str, found: dict[int, Any]) -> list[Row]:
        known = {seed: value for seed, value in found.items() if value is not None}
        return [Row(team=team, strength=strength, acts=acts, values=known)] if known else []

    rows = row("the base", None, "sampled", {cell["seed"]: cell["before"] for cell in cells})
    controls: list[Row] = []
    for variant in task.variants:
        found = [cell for cell in cells if cell["algorithm"] == variant]
        for place, point in enumerate(found[0]["points"] if found else ()):
            strength = point["strength"]
            at = {cell["seed"]: cell["points"][place] for cell in found}
            if variant == task.variants[0]:
                values = {seed: one["sharpened"] for seed, one in at.items()}
                controls += row("sharpened", strength, "sampled", values)
            for acts in ("sampled", "greedy"):
                values = {seed: one[acts] for seed, one in at.items()}
                name = "the team itself" if strength == 0.0 else variant
                if strength != 0.0:
                    rows += row(name, strength, acts, values)
                elif variant == task.variants[0]:
                    controls += row(name, strength, acts, values)
    kept = [one for one in controls if one.strength != 0.0 or one.team != "sharpened"]
    return [*rows[:1], *kept, *rows[1:]]


def dominates(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Return whether a point is better at one of two measures and as good at the other."""
    return one != other and one[0] >= other[0] and one[1] >= other[1]


def apart(row: Row, rows: Sequence[Row]) -> str:
    """Return how far a sampled row's measure is from sharpening's of the same strength."""
    if row.acts != "sampled" or row.strength in (None, 0.0) or row.team == "sharpened":
        return ""
    controls = {
        seed: value
        for one in rows
        if one.team == "sharpened" and one.strength == row.strength
        for seed, value in one.values.items()
    }
    both = [seed for seed in row.values if seed in controls]
    return over([row.values[seed][0] - controls[seed][0] for seed in both]) if both else ""


def over(values: Sequence[float]) -> str:
    """Return the interquartile mean over the seeds and its interval, as `value [low, high]`.

    Sorted, so that the bootstrap's draws do not depend on the order of the cells.
    """
    return shown(estimate(sorted(values)), lambda value: f"{value:.4g}")


def report(tasks: dict[str, TransferTask], folder: Path) -> None:
    """Write the table of all cells and a table for every task that has one."""
    finished = read_cells(folder / "cells")
    by_task: dict[str, list[dict[str, Any]]] = {}
    for cell in finished:
        by_task.setdefault(cell["task"], []).append(cell)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "transfer.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(row(one) for name in tasks for one in by_task.get(name, ()))
    lines = [
        "# What is learned once and used again",
        "",
        "`python -m benchmarks.transfer`, one thread; settings in `transfer.toml`, every cell with",
        "its commit in `transfer.csv`. Returns are true ones, over whole episodes after training.",
        "Means are interquartile ones over seeds, with 95 % intervals (bootstrap over seeds, from",
        "three seeds on). A seed that is missing is not trained yet.",
        "",
    ]
    verdicts = tomllib.loads(VERDICTS_FILE.read_text())
    for question, heading in HEADINGS.items():
        asked = [task for task in tasks.values() if task.question == question]
        if not any(task.name in by_task for task in asked):
            continue
        lines += [f"## {heading}", ""]
        for task in asked:
            if task.name in by_task:
                lines += [f"### {task.title}: {task.measured}", ""]
                lines += [*table(task, by_task[task.name]), ""]
                lines += [verdicts[task.name].strip(), ""] if task.name in verdicts else []
    (folder / "transfer.md").write_text("\n".join(lines))


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tasks", nargs="+", help="only tasks whose names begin so")
    parser.add_argument("--variants", nargs="+", help="only these")
    parser.add_argument("--seeds", nargs="+", type=int, help="only these")
    parser.add_argument("--tasks-file", type=Path, default=TASKS_FILE)
    parser.add_argument("--results", type=Path, help="where cells and tables are kept")
    parser.add_argument("--work", type=Path, help="where runs, datasets and fits lie")
    parser.add_argument("--quick", action="store_true", help="two iterations a run, one seed")
    parser.add_argument("--report", action="store_true", help="train nothing")
    parser.add_argument("--only-cell", nargs=3, metavar=("TASK", "VARIANT", "SEED"))
    return parser.parse_args(arguments)


def quickened(task: TransferTask) -> TransferTask:
    """Return a task of two iterations a run."""
    from marl import load_config

    configs = [task.config, *([task.strong] if task.strong else [])]
    sizes = [load_config(ROOT / config, dict(task.overrides)).batch_steps for config in configs]
    return quick(task, max(sizes))


def main(arguments: Sequence[str] | None = None) -> int:
    """Train what is missing, in order; return 1 if a cell failed."""
    chosen = parse_arguments(arguments)
    work, results = WORK, RESULTS
    if chosen.quick:
        work = WORK.with_name("transfer_quick")
        results = work / "results"
    work, results = (chosen.work or work).resolve(), (chosen.results or results).resolve()
    tasks = load(chosen.tasks_file)
    if chosen.quick:
        tasks = {name: quickened(task) for name, task in tasks.items()}
    folder = results / "cells"
    if chosen.only_cell:
        task, variant, seed = chosen.only_cell
        cell = Cell(tasks[task], variant, int(seed))
        write_cell(cell, run_cell(cell, work, QUICK if chosen.quick else Sizes()), folder)
        return 0
    asked = [
        replace(task, seeds=tuple(chosen.seeds or task.seeds))
        for task in tasks.values()
        if not chosen.tasks or task.name.startswith(tuple(chosen.tasks))
    ]
    cells = [
        cell for cell in ordered(asked) if not chosen.variants or cell.variant in chosen.variants
    ]
    missing = [] if chosen.report else pending(cells, folder)
    print(f"{len(missing)} of {len(cells)} cells to train", flush=True)
    failed = 0
    for cell in missing:
        if cell.path(folder).exists():  # another process has trained it meanwhile
            continue
        paths = ["--results", results, "--work", work, "--tasks-file", chosen.tasks_file.resolve()]
        only = ["--only-cell", cell.task.name, cell.variant, cell.seed]
        words = [*paths, *only, *(["--quick"] if chosen.quick else [])]
        command = [sys.executable, "-m", "benchmarks.transfer", *map(str, words)]
        failed += not attempt(cell, command, folder)
        report(tasks, results)
    report(tasks, results)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
