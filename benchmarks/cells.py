"""What the learning benchmark consists of, and where each of its results is kept.

A *cell* is one task, one algorithm and one seed; its result is one small JSON file. The tasks
stand in `tasks.toml`:

    algorithms = ["imap", "sparse"]

    [halfcheetah_2x3]
    title = "HalfCheetah 2x3"
    config = "configs/halfcheetah_2x3.toml"
    steps = 200_000
    seeds = [0, 1, 2]
    overrides = { "learner.epochs" = 8 }    # optional, dotted names of settings

A table `[variants]` crosses every task with sets of overrides; `halfcheetah_2x3` and `g50` make the
task `halfcheetah_2x3_g50`, titled `HalfCheetah 2x3: gamma_R 0.5`:

    [variants.g50]
    title = "gamma_R 0.5"
    overrides = { "reward.gamma" = 0.5 }

A task with `variants = ["g50"]` is crossed with those only.
"""

import json
import os
import platform
import subprocess
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from marl.utils.files import atomic_write

ROOT = Path(__file__).resolve().parent.parent
TASKS_FILE = ROOT / "benchmarks" / "tasks.toml"
RESULTS = ROOT / "benchmarks" / "results" / "learning"


@dataclass(frozen=True, kw_only=True)
class Task:
    """One row of the matrix."""

    name: str
    """Key in the tasks file and name of the folder of results."""
    title: str
    """Name in tables and figures."""
    config: str
    """Path of the settings, from the root of the repository."""
    steps: int
    """Environment steps of each run, summed over environments."""
    seeds: tuple[int, ...]
    """One run of each algorithm per seed."""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """Settings that differ from `config` in this benchmark, by dotted name."""
    measure: str = "return/mean"
    """The metric that is compared, a mean over finished episodes; larger is better."""
    algorithms: tuple[str, ...] | None = None
    """Instead of those of the whole file."""

    @property
    def measured(self) -> str:
        """Return what the measure is called in tables and figures."""
        return {"return/mean": "return", "episode/won": "win rate"}.get(self.measure, self.measure)


@dataclass(frozen=True)
class Cell:
    """One run of the matrix."""

    task: Task
    algorithm: str
    seed: int

    def path(self, folder: Path) -> Path:
        """Return where the finished cell is kept."""
        return folder / self.task.name / self.algorithm / f"seed_{self.seed}.json"

    def failed_path(self, folder: Path) -> Path:
        """Return where the error of a failed cell is kept."""
        return self.path(folder).with_suffix(".failed.json")

    def __str__(self) -> str:
        """Return the name that progress is reported under."""
        return f"{self.task.name}/{self.algorithm}/seed_{self.seed}"


@dataclass(frozen=True, kw_only=True)
class Results:
    """Every file found: finished cells and failed ones, as they were written."""

    finished: list[dict[str, Any]]
    failed: list[dict[str, Any]]


def load_tasks(path: Path = TASKS_FILE) -> tuple[tuple[str, ...], dict[str, Task]]:
    """Return the algorithms, and the tasks by name."""
    content = tomllib.loads(path.read_text())
    algorithms = tuple(content.pop("algorithms"))
    variants = content.pop("variants", None)
    tasks: dict[str, Task] = {}
    for name, entry in content.items():
        try:
            chosen = entry.pop("variants", variants)
            lists = {key: tuple(entry[key]) for key in ("seeds", "algorithms") if key in entry}
            task = Task(**{"seeds": (), **entry, **lists, "name": name})
        except TypeError as error:
            raise ValueError(
                f"{path}, [{name}]: {error}; give title, config, steps, seeds and, where needed, "
                "overrides, measure and algorithms"
            ) from error
        crossed = [task]
        if variants is not None:
            crossed = _crossed(task, {key: variants[key] for key in chosen})
        tasks |= {one.name: one for one in crossed}
    return algorithms, tasks


def _crossed(task: Task, variants: Mapping[str, Mapping[str, Any]]) -> list[Task]:
    """Return the task once per variant, under names and titles of their own."""
    return [
        replace(
            task,
            name=f"{task.name}_{name}",
            title=f"{task.title}: {variant['title']}",
            overrides={**task.overrides, **variant["overrides"]},
        )
        for name, variant in variants.items()
    ]


def read_results(folder: Path) -> Results:
    """Return all cells under a folder, ordered by task, algorithm and seed."""
    found = [(path, json.loads(path.read_text())) for path in folder.glob("*/*/seed_*.json")]
    found.sort(key=lambda item: (item[1]["task"], item[1]["algorithm"], item[1]["seed"]))
    return Results(
        finished=[cell for path, cell in found if not path.name.endswith(".failed.json")],
        failed=[cell for path, cell in found if path.name.endswith(".failed.json")],
    )


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file that is either whole or absent, whenever the program is killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, (json.dumps(content, allow_nan=False) + "\n").encode())


def commit() -> str:
    """Return the short commit, marked where the code that trains differs from it."""
    if not (ROOT / ".git").exists():
        return "not a checkout"
    revision = _git("rev-parse", "--short", "HEAD")
    return f"{revision}-changed" if _git("status", "--porcelain", "marl", "envs") else revision


def machine() -> str:
    """Return processor, cores and versions: what a run time depends on."""
    import torch

    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return (
        f"{models[0] if models else platform.machine()}, {os.cpu_count()} cores, "
        f"{platform.system()}, Python {platform.python_version()}, torch {torch.__version__}"
    )


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()
