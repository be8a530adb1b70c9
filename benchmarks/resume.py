"""Kills runs at random moments, resumes them, and compares every metric with a run left alone.

    python -m benchmarks.resume --kills 20

Timings and memory are left out of the comparison; everything else must agree bit for bit.
"""

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from marl.utils.metrics import read_metrics

IGNORED = ("time/", "memory/")
MARL = [sys.executable, "-c", "from marl.cli import main; main()"]


def run_killed(folder: Path, flags: list[str], moments: list[float]) -> int:
    """Train in `folder`, killed after each of `moments` seconds; return the kills that hit."""
    command = [*MARL, "train", "--run-dir", str(folder), *flags]
    kills = 0
    for moment in [*moments, None]:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            _, errors = process.communicate(timeout=moment)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += 1
        else:
            if process.returncode != 0:
                raise RuntimeError(f"{' '.join(command)} failed:\n{errors.decode()}")
            if moment is not None:
                break
        if (folder / "config.toml").exists():
            command = [*MARL, "resume", str(folder)]
    return kills


def differences(left: Path, right: Path) -> list[str]:
    """Return the metrics in which two runs differ; NaN equals NaN."""
    first, second = read_metrics(left), read_metrics(right)
    names = [n for n in sorted(first.keys() | second.keys()) if not n.startswith(IGNORED)]
    return [
        name
        for name in names
        if name not in first
        or name not in second
        or not np.array_equal(first[name], second[name], equal_nan=True)
    ]


def main() -> None:
    """Print one line per killed run and exit with 1 if any differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="kills in total")
    parser.add_argument("--kills-per-run", type=int, default=4, help="kills of one run")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    parser.add_argument("flags", nargs="*", help="flags of marl train, after --")
    options = parser.parse_args()
    flags = options.flags or [
        "--total-steps",
        "80000",
        "--checkpoint-every",
        "6000",
        "--preferences.replay-steps",
        "48000",
    ]
    rng = random.Random(options.seed)
    kills = failures = 0
    with tempfile.TemporaryDirectory() as scratch:
        alone = Path(scratch) / "alone"
        started = time.perf_counter()
        run_killed(alone, flags, [])
        whole = time.perf_counter() - started
        print(f"left alone: {whole:.1f} s")
        runs = 0
        while kills < options.kills:
            runs += 1
            folder = Path(scratch) / f"killed_{runs}"
            count = min(options.kills_per_run, options.kills - kills)
            moments = [rng.uniform(0.2, 0.8) * whole for _ in range(count)]
            hit = run_killed(folder, flags, moments)
            kills += hit
            different = differences(alone, folder)
            failures += bool(different)
            verdict = f"differs in {', '.join(different)}" if different else "identical"
            print(f"run {runs}: {hit} kills, {verdict}", flush=True)
    print(f"{kills} kills, {failures} of {runs} runs differ")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
