"""Whole recurrent MAPPO loops on SMAX beside JaxMARL's way of running them, on one core.

    python -m benchmarks.recurrent --rounds 2 --output benchmarks/results/recurrent.md

Every round measures each contender once, one after the other, each in a process of its own on the
same core, so that a machine whose speed drifts drifts for all of them. Compiling is not counted.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import ROOT
from benchmarks.jaxmarl_style import EPOCHS, MINIBATCHES, STEPS
from marl.utils.origin import commit, machine

SCENARIOS = ("3m", "smacv2_5_units")
PARTS = ("physics", "inference", "policy")
REFERENCE = "JaxMARL-style, 128 environments, width 128"
OURS = {
    "ours, 512 environments, width 64": (512, [64, 64]),
    "ours, 128 environments, width 64": (128, [64, 64]),
    "ours, 512 environments, JaxMARL's layers of 128": (512, [128, 128, 128]),
}
"""Copies and hidden layers, of which the second is the GRU."""
WORK = {"rollout_steps": STEPS, "epochs": EPOCHS, "minibatches": MINIBATCHES}
"""How often both sides go through which batch: JaxMARL's settings."""
_LOOP = """
import json, sys, time
from marl import Trainer, load_config
import torch
torch.set_num_threads(1)
scenario, num_envs, hidden = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
work = json.loads(sys.argv[5])
overrides = {"algorithm": "sparse", "env.num_envs": num_envs, "threads": 1}
overrides |= {"network.recurrence": "gru"}
overrides |= {"env.options": {"reward_mode": "dense"}, "network.hidden_sizes": hidden}
overrides |= {f"learner.{name}": value for name, value in work.items()}
trainer = Trainer(load_config(f"configs/smax_{scenario}.toml", overrides))
for _ in range(2):
    trainer.iterate()
split, before = {}, trainer.steps
began, worked = time.perf_counter(), time.process_time()
while trainer.steps < before + int(sys.argv[4]):
    for name, value in trainer.iterate().items():
        if name.startswith("time/") and name != "time/steps_per_second":
            split[name[5:]] = split.get(name[5:], 0.0) + value
seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - worked
steps = trainer.steps - before
rates = {"steps_per_second": steps / seconds, "steps_per_cpu_second": steps / cpu_seconds}
print(json.dumps(rates | {"split": split}))
"""


@dataclass(frozen=True)
class Measured:
    """What a measured process reports on its last line."""

    steps_per_second: float
    steps_per_cpu_second: float
    split: dict[str, float] = field(default_factory=dict)
    """Seconds of each part; empty where it is not known."""


def run(*arguments: str) -> Measured:
    """Return what a process of its own measures."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def measure(options: argparse.Namespace) -> str:
    """Return the report as Markdown."""
    found: dict[tuple[str, str], list[Measured]] = {}
    for _ in range(options.rounds):
        for scenario in options.scenarios:
            style = run("-m", "benchmarks.jaxmarl_style", scenario)
            found.setdefault((scenario, REFERENCE), []).append(style)
            for name, (num_envs, hidden) in OURS.items():
                told = str(num_envs), json.dumps(hidden), str(options.steps), json.dumps(WORK)
                ours = run("-c", _LOOP, scenario, *told)
                found.setdefault((scenario, name), []).append(ours)
            latest = {key: round(runs[-1].steps_per_cpu_second) for key, runs in found.items()}
            print(latest, file=sys.stderr, flush=True)
    return report(found, options)


def report(found: dict[tuple[str, str], list[Measured]], options: argparse.Namespace) -> str:
    """Return medians, ratios within a round and the loop's time split as a Markdown table."""
    lines = [
        "# Recurrent MAPPO on SMAX: whole training loops on one core",
        "",
        f"`python -m benchmarks.recurrent {' '.join(sys.argv[1:])}`",
        f"at commit {commit()} on {machine()}; one core, rounds: {options.rounds}, medians.",
        "",
        "JaxMARL's package does not ship its training scripts; `benchmarks/jaxmarl_style.py` does",
        "the work of its recurrent MAPPO with its settings (128 environments, 128 steps, 4 epochs,",
        "4 minibatches of whole sequences, three layers of 128 with the GRU in the middle,",
        "a critic row for every agent), collecting and learning compiled as one function. It is",
        "not their file. Ours: the files in `configs/` with `--algorithm sparse`, dense rewards,",
        "`--network.recurrence gru` and as many steps, epochs and minibatches, of chunks of",
        "10 steps; the critic has one row for the team. Width 64 in two layers, of which the",
        "second is the GRU, is this package's default. CPU seconds are the process's own,",
        "which others on the machine lengthen less than the clock's.",
        "",
        "| scenario | loop | steps/s | steps/CPU s | of the JaxMARL-style, by clock, by CPU "
        "| physics, inference, policy |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for (scenario, name), runs in found.items():
        base = found[scenario, REFERENCE]
        pairs = list(zip(runs, base, strict=True))
        clock = statistics.median(a.steps_per_second / b.steps_per_second for a, b in pairs)
        cpu = statistics.median(a.steps_per_cpu_second / b.steps_per_cpu_second for a, b in pairs)
        split = runs[-1].split
        total = sum(split.get(part, 0.0) for part in PARTS)
        shares = ", ".join(f"{split[part] / total:.0%}" for part in PARTS) if split else ""
        speed = statistics.median(one.steps_per_second for one in runs)
        work = statistics.median(one.steps_per_cpu_second for one in runs)
        times = "" if name == REFERENCE else f"{clock:.1f}, {cpu:.1f} times"
        lines.append(f"| {scenario} | {name} | {speed:,.0f} | {work:,.0f} | {times} | {shares} |")
    lines += [
        "",
        "Seen earlier with JaxMARL's own script, by whoever set this project's goals, on one core",
        "of a machine of this class and not measured here: 3,140 (3m) and 1,840 (smacv2_5_units).",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print the report and write it if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenarios", nargs="+", default=list(SCENARIOS))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=100_000, help="of our loops, after a start")
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    os.sched_setaffinity(0, {options.core})  # which the measured processes inherit
    os.environ["OMP_NUM_THREADS"] = "1"
    text = measure(options)
    print(text)
    if options.output is not None:
        options.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
