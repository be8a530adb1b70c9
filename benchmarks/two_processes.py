"""Whether two processes learn what one learns: the same settings and global batch, by torchrun.

    python -m benchmarks.two_processes --out runs/two_processes
    python -m benchmarks.two_processes --tasks nav_6 --seeds 0 1 --steps 50_000 --out runs/few

Every seed is trained by one process and by two, one run after the other, each process with one
thread. Environments and random draws differ between them, so that only the intervals over seeds can
be compared. Given again, finished runs are kept and stopped ones go on. `--table` only compares.
"""

import argparse
import math
import os
import subprocess
import sys
from pathlib import Path

from benchmarks import ROOT
from marl.config.io import load_config
from marl.reports.comparison import seed_of
from marl.reports.estimates import LEAST_SEEDS, estimate, shown
from marl.reports.recorded import read_run
from marl.utils.origin import commit, machine

TASKS = {
    "nav_6": ("configs/nav_6.toml", 100_000),
    "halfcheetah_2x3": ("configs/halfcheetah_2x3.toml", 100_000),
}
"""Settings and steps."""
NUMBERS = (1, 2)
"""Of processes."""
COLUMNS = ("return/mean", "return/episodes")


def train(folder: Path, config: str, steps: int, seed: int, processes: int) -> None:
    """Train a run to its end, from where it stands."""
    if (folder / "config.toml").exists():
        if read_run(folder, ()).steps >= load_config(folder / "config.toml").total_steps:
            return
        arguments = ["resume", str(folder)]
    else:
        arguments = ["train", "--config", config, "--algorithm", "imap", "--seed", str(seed)]
        arguments += ["--threads", "1", "--total-steps", str(steps), "--run-dir", str(folder)]
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    subprocess.run(
        [sys.executable, *(torchrun if processes > 1 else []), "-m", "marl", *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        check=True,
    )


def finals(folder: Path) -> dict[int, float]:
    """Return the mean return of the last tenth of every finished run, by seed."""
    found = {}
    for path in sorted(folder.glob("seed_*")):
        if not (path / "config.toml").exists():
            continue
        run = read_run(path, COLUMNS)
        seed = seed_of(run, COLUMNS[0], run.steps)
        if run.steps >= run.config.total_steps and seed is not None:
            found[run.config.seed] = seed.final
    return found


def row(out: Path, task: str) -> str:
    """Return a task's line of the table."""
    both = [finals(out / task / str(number)) for number in NUMBERS]
    seeds = sorted(both[0].keys() & both[1].keys())
    if not seeds:
        return f"| {task} | none finished | | | | |"
    one, two = ([part[seed] for seed in seeds] for part in both)
    first, second = estimate(one), estimate(two)
    overlap = "" if len(seeds) < LEAST_SEEDS else "no"
    if first.low <= second.high and second.low <= first.high:
        overlap = "yes"
    steps = read_run(out / task / "1" / f"seed_{seeds[0]}", ()).config.total_steps
    pairs = "; ".join(f"{s}: {a:.2f}, {b:.2f}" for s, a, b in zip(seeds, one, two, strict=True))
    cells = [task, f"{steps:,}", shown(first), shown(second), overlap, pairs]
    assert all(map(math.isfinite, one + two))
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Train what is missing, seed by seed, and print a Markdown table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, help="of every run; those of the task if not given")
    parser.add_argument("--out", type=Path, default=Path("runs/two_processes"))
    parser.add_argument("--table", action="store_true", help="only print what is there")
    options = parser.parse_args()
    out = options.out.absolute()
    for task in options.tasks if not options.table else []:
        config, steps = TASKS[task]
        for seed in options.seeds:
            for number in NUMBERS:
                folder = out / task / str(number) / f"seed_{seed}"
                train(folder, config, options.steps or steps, seed, number)
    print(f"commit {commit()} on {machine()}\n")
    print("| task | steps | 1 process | 2 processes | intervals overlap | each seed: 1, 2 |")
    print("| --- | --- | --- | --- | --- | --- |")
    for task in options.tasks:
        print(row(out, task))


if __name__ == "__main__":
    main()
