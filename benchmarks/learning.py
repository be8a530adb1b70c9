"""Train every algorithm on every task with every seed; keep each outcome as one small file.

    python -m benchmarks.learning --jobs 2
    python -m benchmarks.learning --tasks nav_6 --algorithms imap sl --seeds 0 1 2

Each cell (see `cells.py`) runs in a process of its own with one thread, so a crash costs one
cell. Given again, the command skips finished cells and tries failed ones anew; the error of a
failed cell stands in its `seed_<k>.failed.json`. Afterwards `benchmarks.aggregate` makes the
tables and the figures.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.cells import (
    RESULTS,
    ROOT,
    TASKS_FILE,
    Cell,
    commit,
    load_tasks,
    machine,
    write_json,
)

FINAL_SHARE = 0.1
"""The last tenth of the steps gives a cell's single numbers."""
SINGLE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

Metrics = Mapping[str, float]
Trainer = Callable[[Cell], Iterable[Metrics]]


def train_package(cell: Cell) -> Iterator[Metrics]:
    """Yield the metrics of our own trainer, one dict per iteration, the last with an evaluation."""
    from marl import Policy, Trainer, evaluate, load_config

    overrides = {
        "algorithm": cell.algorithm,
        "seed": cell.seed,
        "total_steps": cell.task.steps,
        "threads": 1,
        "diagnose_hidden": True,
        **cell.task.overrides,
    }
    config = load_config(ROOT / cell.task.config, overrides=overrides)
    trainer = Trainer(config)
    for _ in range(config.num_iterations - 1):
        yield trainer.iterate()
    metrics = trainer.iterate()
    policy = Policy(
        config=config,
        spec=trainer.env.spec,
        steps=trainer.steps,
        actor=trainer.learner.actor,
    )
    for name in ("greedy", "sampled"):
        result = evaluate(policy, greedy=name == "greedy", episodes=16, seed=cell.seed)
        metrics[f"evaluation/{name}"] = result.mean
    yield metrics


def run_cell(cell: Cell, trainer: Trainer = train_package) -> dict[str, Any]:
    """Return everything that is kept of one run.

    `returns` is the learning curve: pairs of a step and the task's measure, usually the mean true
    (hidden dense) return, over the episodes that ended in that iteration. `final` and the other
    single numbers belong to the last tenth of the steps.
    """
    code = commit()
    begin = time.perf_counter()
    history = [dict(metrics) for metrics in trainer(cell)]
    late = [m for m in history if m["steps"] > (1 - FINAL_SHARE) * cell.task.steps]
    return {
        "task": cell.task.name,
        "algorithm": cell.algorithm,
        "seed": cell.seed,
        "steps": cell.task.steps,
        "commit": code,
        "machine": machine(),
        "seconds": round(time.perf_counter() - begin, 1),
        "final": final_return(late, cell),
        "reward_correlation": finite_mean(late, "benchmark/reward_correlation"),
        "preference_accuracy": finite_mean(late, "preference/accuracy"),
        "evaluation": last_values(history, "evaluation/"),
        "returns": [
            [int(metrics["steps"]), round(metrics[cell.task.measure], 4)]
            for metrics in history
            if math.isfinite(metrics.get(cell.task.measure, math.nan))
        ],
    }


def final_return(late: Sequence[Metrics], cell: Cell) -> float:
    """Return the task's measure over all episodes that ended in the late iterations."""
    measure = cell.task.measure
    ended = [(m[measure], m["return/episodes"]) for m in late if m["return/episodes"] > 0]
    if not ended:
        raise ValueError(
            f"{cell}: no episode ended in the last tenth of {cell.task.steps} steps; "
            "train for longer or use more environments"
        )
    return sum(mean * count for mean, count in ended) / sum(count for _, count in ended)


def finite_mean(late: Sequence[Metrics], key: str) -> float | None:
    """Return the mean of a metric over the iterations that have it; None if none has."""
    values = [m[key] for m in late if math.isfinite(m.get(key, math.nan))]
    return sum(values) / len(values) if values else None


def last_values(history: Sequence[Metrics], prefix: str) -> dict[str, float]:
    """Return the latest finite value of each metric whose name starts with `prefix`."""
    found: dict[str, float] = {}
    for metrics in history:
        for key, value in metrics.items():
            if key.startswith(prefix) and math.isfinite(value):
                found[key.removeprefix(prefix)] = value
    return found


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
    """Run one cell's process; report whether its result is there, and keep the error if not."""
    environment = {**os.environ, **SINGLE_THREAD}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    succeeded = done.returncode == 0 and cell.path(folder).exists()
    if succeeded:
        cell.failed_path(folder).unlink(missing_ok=True)
    else:
        failure = {
            "task": cell.task.name,
            "algorithm": cell.algorithm,
            "seed": cell.seed,
            "exit_code": done.returncode,
            "traceback": without_local_paths(done.stderr)[-8000:],
        }
        write_json(cell.failed_path(folder), failure)
    print(f"{'done  ' if succeeded else 'FAILED'} {cell}", flush=True)
    return succeeded


def without_local_paths(text: str) -> str:
    """Return an error that can be published: paths start at the repository or at Python's home."""
    return text.replace(f"{ROOT}{os.sep}", "").replace(sys.prefix, "python")


def run_matrix(
    cells: Sequence[Cell], folder: Path, jobs: int, command: Callable[[Cell], Sequence[str]]
) -> list[Cell]:
    """Run `jobs` cells at a time, each by its command; return those that failed."""
    with ThreadPoolExecutor(jobs) as pool:
        outcomes = list(pool.map(lambda cell: attempt(cell, command(cell), folder), cells))
    return [cell for cell, succeeded in zip(cells, outcomes, strict=True) if not succeeded]


def cell_command(cell: Cell, tasks_file: Path, folder: Path) -> list[str]:
    """Return the command that trains one cell in a process of its own."""
    paths = ["--tasks-file", str(tasks_file.resolve()), "--cells", str(folder.resolve())]
    only = ["--only-cell", cell.task.name, cell.algorithm, str(cell.seed)]
    return [sys.executable, "-m", "benchmarks.learning", *paths, *only]


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description="Train the learning benchmark's missing cells.")
    parser.add_argument("--jobs", type=int, default=2, help="cells trained at a time")
    parser.add_argument("--tasks", nargs="+", help="only these tasks")
    parser.add_argument("--algorithms", nargs="+", help="instead of those of the tasks file")
    parser.add_argument("--seeds", nargs="+", type=int, help="instead of those of the tasks file")
    parser.add_argument("--tasks-file", type=Path, default=TASKS_FILE)
    parser.add_argument("--cells", type=Path, default=RESULTS / "cells", help="folder of results")
    parser.add_argument(
        "--only-cell",
        nargs=3,
        metavar=("TASK", "ALGORITHM", "SEED"),
        help="train this one in the present process",
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train what is missing; return 1 if a cell failed."""
    chosen = parse_arguments(arguments)
    algorithms, tasks = load_tasks(chosen.tasks_file)
    if chosen.only_cell:
        name, algorithm, seed = chosen.only_cell
        cell = Cell(tasks[name], algorithm, int(seed))
        write_json(cell.path(chosen.cells), run_cell(cell))
        return 0
    if unknown := sorted(set(chosen.tasks or ()) - tasks.keys()):
        known = ", ".join(tasks)
        raise SystemExit(f"no task {', '.join(unknown)}; {chosen.tasks_file} has {known}")
    cells = [
        Cell(tasks[name], algorithm, seed)
        for name in chosen.tasks or tasks
        for seed in chosen.seeds or tasks[name].seeds
        for algorithm in chosen.algorithms or tasks[name].algorithms or algorithms
    ]
    cells.sort(key=lambda cell: cell.seed)  # a matrix stopped early has every task
    missing = pending(cells, chosen.cells)
    print(f"{len(cells) - len(missing)} of {len(cells)} cells are there; {len(missing)} to train")
    failed = run_matrix(
        missing,
        chosen.cells,
        chosen.jobs,
        lambda cell: cell_command(cell, chosen.tasks_file, chosen.cells),
    )
    for cell in failed:
        print(f"failed: {cell}, see {cell.failed_path(chosen.cells)}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
