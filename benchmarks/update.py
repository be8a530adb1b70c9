"""Whole training loops of two checkouts beside each other: where a change of the update pays.

    python -m benchmarks.update --before ../before --cases default nav_6 --rounds 7

Each case runs in two processes, one per checkout, that take turns: some iterations here, as many
there, so that a machine whose speed drifts drifts for both. The table holds the ratios of CPU
seconds within a round, before over now, and CPU and wall milliseconds of an iteration: medians.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from benchmarks import ROOT
from marl.utils.origin import commit, machine

IMAP: dict[str, object] = {"algorithm": "imap"}
CASES: dict[str, tuple[str | None, dict[str, object]]] = {
    "imap_16": (None, IMAP),
    "imap_64": (None, IMAP | {"env.num_envs": 64, "preferences.replay_steps": 1_024_000}),
    "sparse_16": (None, {"algorithm": "sparse"}),
    "sparse_64": (None, {"algorithm": "sparse", "env.num_envs": 64}),
    "nav_6": ("configs/nav_6.toml", IMAP | {"env.num_envs": 64, "learner.epochs": 6}),
    "slf_nav_6": (
        "configs/nav_6.toml",
        {"algorithm": "slf", "env.num_envs": 64, "learner.epochs": 6},
    ),
    "smax_3m": (
        "configs/smax_3m.toml",
        IMAP | {"env.num_envs": 16, "preferences.replay_steps": 200_000},
    ),
    "smax_3m_256": ("configs/smax_3m.toml", IMAP),
    "smacv2_5_units": ("configs/smax_smacv2_5_units.toml", IMAP),
    "smax_3m_gru": ("configs/smax_3m.toml", IMAP | {"network.recurrence": "gru"}),
}
PARTS = ("physics", "inference", "reward", "policy")
_LOOP = """
import json, sys, time
from marl import Trainer, load_config
import torch
torch.set_num_threads(1)
trainer = Trainer(load_config(*json.loads(sys.argv[1])))
metrics = {}
while "value/loss_local" not in metrics and "value/loss_team" not in metrics:
    metrics = trainer.iterate()
print("ready", flush=True)
for line in sys.stdin:
    cpu, wall, split = time.process_time(), time.perf_counter(), {}
    for _ in range(int(line)):
        for name, value in trainer.iterate().items():
            if name.startswith("time/"):
                split[name[5:]] = split.get(name[5:], 0.0) + value
    report = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall, "split": split}
    print(json.dumps(report), flush=True)
"""


class Loop:
    """A training loop in a process of its own, which waits until it is asked for iterations."""

    def __init__(self, checkout: Path, case: str, threads: int) -> None:
        config, overrides = CASES[case]
        arguments = json.dumps([config, {"threads": threads, "total_steps": 10**9} | overrides])
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", _LOOP, arguments],
            cwd=checkout,
            env=os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._read()

    def _read(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the loop ended with status {self.process.wait()}")
        return line

    def run(self, iterations: int) -> dict[str, dict[str, float]]:
        """Return the seconds of some iterations: CPU, wall, and wall by part."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{iterations}\n")
        self.process.stdin.flush()
        report = json.loads(self._read())
        parts = {name: report["split"][name] for name in PARTS}
        return {"seconds": {"cpu": report["cpu"], "wall": report["wall"]}, "parts": parts}

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def measure(case: str, checkouts: list[Path], options: argparse.Namespace) -> str:
    """Return a case's row of the table."""
    loops = [Loop(checkout, case, options.threads) for checkout in checkouts]
    rounds = []
    for index in range(options.rounds):
        turn = loops if index % 2 == 0 else loops[::-1]
        reports = {id(loop): loop.run(options.iterations) for loop in turn}
        rounds.append([reports[id(loop)] for loop in loops])
    for loop in loops:
        loop.close()

    def median(which: int, group: str, name: str) -> float:
        return statistics.median(r[which][group][name] for r in rounds) * 1e3 / options.iterations

    ratios = sorted(r[0]["seconds"]["cpu"] / r[1]["seconds"]["cpu"] for r in rounds)
    cells = [
        case,
        f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})",
        *(f"{median(0, 'seconds', x):.0f}, {median(1, 'seconds', x):.0f}" for x in ("cpu", "wall")),
        *(f"{median(0, 'parts', part):.0f}, {median(1, 'parts', part):.0f}" for part in PARTS),
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", type=Path, required=True, help="another checkout")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=["imap_16", "nav_6"])
    parser.add_argument("--iterations", type=int, default=4, help="in each turn")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    print(f"{machine()}; commit {commit()}, {options.rounds} rounds, {options.threads} threads\n")
    print(f"| case | CPU ratio | CPU ms | wall ms | {' | '.join(PARTS)} |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for case in options.cases:
        print(measure(case, [options.before.resolve(), ROOT], options), flush=True)


if __name__ == "__main__":
    main()
