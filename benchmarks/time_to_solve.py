"""Seconds of CPU and of the clock until a task is solved, over variants of settings and seeds.

    python -m benchmarks.time_to_solve --tasks nav_6 --variants default epochs_4 --seeds 300 301

The goals and the variants stand in `time_to_solve.toml`. Each run is a process of its own, timed
from the interpreter's start, imports included. Its result is one small file: given again, the
command skips the runs that have one. Settings are chosen by CPU seconds on seeds that are not
reported; on a machine that does nothing else the seconds of the clock are what users wait. With
`--benchmarl-python`, BenchMARL's MAPPO is timed on HalfCheetah 2x3 as well, whose counterpart is
the variant `dense`: both learn from the reward of every step.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
import tomllib
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import ROOT
from marl.utils.files import atomic_write
from marl.utils.origin import commit, machine

FILE = ROOT / "benchmarks" / "time_to_solve.toml"
RESULTS = ROOT / "benchmarks" / "results" / "time_to_solve"
BENCHMARL = "benchmarl"


@dataclass(frozen=True, kw_only=True)
class Goal:
    """When a task counts as solved."""

    config: str
    measure: str
    """A metric that is a mean over finished episodes; larger is better."""
    level: float
    episodes: int
    """Last finished episodes whose mean must reach the level."""
    steps: int
    """Environment steps after which a run is given up."""


class LastEpisodes:
    """The mean of a metric over the last finished episodes."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._means: deque[tuple[float, float]] = deque()

    def add(self, mean: float, episodes: float) -> float:
        """Take the mean of some more episodes; return that of the last, NaN while too few ended."""
        if episodes > 0 and math.isfinite(mean):
            self._means.append((mean, episodes))
        while self._total() - (self._means[0][1] if self._means else 0.0) >= self.count:
            self._means.popleft()
        total = self._total()
        if total < self.count:
            return math.nan
        return sum(mean * episodes for mean, episodes in self._means) / total

    def _total(self) -> float:
        return sum(episodes for _, episodes in self._means)


def solve(goal: Goal, iterations: Iterable[Mapping[str, float]]) -> dict[str, Any]:
    """Return the steps and the CPU seconds until the goal is reached, and whether it was."""
    last, curve = LastEpisodes(goal.episodes), []
    solved, steps = False, 0
    for metrics in iterations:
        steps = int(metrics["steps"])
        mean = last.add(metrics[goal.measure], metrics["return/episodes"])
        if math.isfinite(mean):
            curve.append([steps, round(time.process_time(), 2), round(mean, 4)])
        solved = mean >= goal.level
        if solved:
            break
    return {
        "solved": solved,
        "steps": steps,
        "cpu_seconds": round(time.process_time(), 2),
        "curve": curve,
    }


def run(goal: Goal, overrides: Mapping[str, Any], seed: int, threads: int) -> dict[str, Any]:
    """Return the result of one run in this process."""
    import torch

    from marl import load_config, train

    torch.set_num_threads(1)
    own = {"algorithm": "imap", "total_steps": goal.steps, "seed": seed, "threads": threads}
    return solve(goal, train(load_config(ROOT / goal.config, own | dict(overrides))))


def measure(goal: Goal, task: str, variant: str, seed: int, options: argparse.Namespace) -> None:
    """Measure one run in a process of its own and keep its result."""
    path = result_path(options.results, task, variant, seed)
    if path.exists():
        return
    if variant == BENCHMARL:
        command = [str(options.benchmarl_python), str(ROOT / "benchmarks" / "benchmarl_rate.py")]
        told = {"until": goal.level, "episodes": goal.episodes, "steps": goal.steps}
        told |= {"num-envs": options.benchmarl_envs, "sampling": "batched"}
        told |= {"seed": seed, "threads": options.threads}
        command += [text for name, value in told.items() for text in (f"--{name}", str(value))]
    else:
        command = [sys.executable, "-m", "benchmarks.time_to_solve", "--only"]
        command += [task, variant, str(seed), "--threads", str(options.threads)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    began = time.perf_counter()
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    wall = round(time.perf_counter() - began, 2)
    found = json.loads(done.stdout.splitlines()[-1]) | {"wall_seconds": wall}
    known = {"task": task, "variant": variant, "seed": seed, "threads": options.threads}
    known |= {"level": goal.level, "commit": commit(), "machine": machine()}
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, json.dumps(known | found).encode())
    print(f"{path.name}: {found['cpu_seconds']} CPU s, solved: {found['solved']}", file=sys.stderr)


def result_path(folder: Path, task: str, variant: str, seed: int) -> Path:
    """Return where a run's result is kept."""
    return folder / f"{task}_{variant}_{seed}.json"


def table(results: Sequence[Mapping[str, Any]], goals: Mapping[str, Goal]) -> str:
    """Return medians over the seeds; a run that was given up counts as the longest of all."""
    lines = [
        "| task, goal | variant | solved | CPU s, median (each) | wall s, median | steps, median |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    rows = dict.fromkeys((one["task"], one["variant"]) for one in results)
    for task, variant in rows:
        runs = [one for one in results if (one["task"], one["variant"]) == (task, variant)]
        solved = sum(one["solved"] for one in runs)
        cpu, wall, steps = (
            statistics.median(one[name] if one["solved"] else math.inf for one in runs)
            for name in ("cpu_seconds", "wall_seconds", "steps")
        )
        each = ", ".join(
            f"{one['cpu_seconds']:.0f}" if one["solved"] else f"> {one['cpu_seconds']:.0f}"
            for one in runs
        )
        goal = f"{task}, {goals[task].measure} {goals[task].level:g}"
        medians = [f"{x:,.0f}" if math.isfinite(x) else "never" for x in (cpu, wall, steps)]
        cells = [goal, variant, f"{solved} of {len(runs)}", f"{medians[0]} ({each})", *medians[1:]]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is missing and print the table."""
    content = tomllib.loads(FILE.read_text(encoding="utf-8"))
    goals = {name: Goal(**entry) for name, entry in content["tasks"].items()}
    variants: dict[str, dict[str, Any]] = content["variants"]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", nargs="+", choices=goals, default=list(goals))
    parser.add_argument("--variants", nargs="+", choices=variants, default=["default"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[300, 301, 302])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--benchmarl-python", type=Path, help="Python of BenchMARL's environment")
    parser.add_argument("--benchmarl-envs", type=int, default=64)
    parser.add_argument("--only", nargs=3, metavar=("TASK", "VARIANT", "SEED"))
    options = parser.parse_args(arguments)
    if options.only:
        task, variant, seed = options.only
        print(json.dumps(run(goals[task], variants[variant], int(seed), options.threads)))
        return
    wanted = []
    for task in options.tasks:
        of_task = list(options.variants)
        if task == "halfcheetah_2x3" and options.benchmarl_python is not None:
            of_task.append(BENCHMARL)
        wanted += [(task, variant, seed) for seed in options.seeds for variant in of_task]
    for task, variant, seed in wanted:
        measure(goals[task], task, variant, seed, options)
    paths = [result_path(options.results, *one) for one in wanted]
    print(table([json.loads(path.read_text()) for path in paths], goals))


if __name__ == "__main__":
    main()
