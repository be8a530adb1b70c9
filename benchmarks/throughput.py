r"""Whole training loops on HalfCheetah 2x3 beside raw physics and others, in one run.

    python -m benchmarks.throughput --benchmarl-python benchmarl-env/bin/python \
        --sb3-python sb3-env/bin/python

Every round measures each contender once, one after the other, so that a machine whose speed
drifts drifts for all of them; the table holds medians over rounds and ratios within a round.
"""

import argparse
import json
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks import ROOT
from benchmarks.physics import env_rate, raw_physics_rate, record
from marl.utils.origin import commit, machine

PARTS = ("physics", "inference", "reward", "policy")
BENCHMARL = {
    "BenchMARL MAPPO": ("serial", "batched"),
    "BenchMARL MAPPO with our environment in it": ("ours",),
}
"""What is measured as the fastest of which samplings."""
SB3 = "Stable-Baselines3 PPO, one agent"
_LOOP = """
import json, sys, time
from marl import Trainer, load_config
import torch
torch.set_num_threads(1)
algorithm, num_envs, steps, threads = sys.argv[1], *map(int, sys.argv[2:])
overrides = {"algorithm": algorithm, "env.num_envs": num_envs, "threads": threads}
config = load_config(None, overrides | {"preferences.replay_steps": 16_000 * num_envs})
trainer = Trainer(config)
while trainer.steps < 1100 * num_envs:
    trainer.iterate()
split, began, before = {}, time.perf_counter(), trainer.steps
while trainer.steps < before + steps:
    metrics = trainer.iterate()
    for name, value in metrics.items():
        if name.startswith("time/") and name != "time/steps_per_second":
            split[name[5:]] = split.get(name[5:], 0.0) + value
seconds = time.perf_counter() - began
rate = (trainer.steps - before) / seconds
print(json.dumps({"rate": rate, "split": split, "mib": metrics["memory/resident_mib"]}))
"""


@dataclass(frozen=True)
class Loop:
    """One measured training loop."""

    steps_per_second: float
    seconds: dict[str, float]
    resident_mib: float


def run_loop(algorithm: str, num_envs: int, steps: int, threads: int) -> Loop:
    """Return the speed of our own loop after its first episodes ended, in a fresh process."""
    arguments = [algorithm, str(num_envs), str(steps), str(threads)]
    done = subprocess.run(
        [sys.executable, "-c", _LOOP, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    report = json.loads(done.stdout.splitlines()[-1])
    return Loop(report["rate"], report["split"], report["mib"])


def run_other(script: str, python: Path, num_envs: int, sampling: str, threads: int) -> float:
    """Return another's steps per second with the same nets, epochs, minibatches and rollout."""
    flags = {
        "num-envs": num_envs,
        "sampling": sampling,
        "threads": threads,
        "steps": 8 * 125 * num_envs,
    }
    command = [str(python), str(ROOT / "benchmarks" / script)]
    command += [text for name, value in flags.items() for text in (f"--{name}", str(value))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    rate: float = json.loads(done.stdout.splitlines()[-1])["steps_per_second"]
    return rate


def measure(options: argparse.Namespace) -> str:
    """Return the report as Markdown."""
    task, num_envs, threads = ("HalfCheetah", "2x3"), options.num_envs, options.threads
    trace = record(*task, 64)
    rows: dict[str, list[float]] = {}
    loops: dict[str, list[Loop]] = {}
    for index in range(options.rounds):
        rates = {
            "raw mujoco.rollout, 64 environments": raw_physics_rate(*task, trace, threads),
            "environment alone, 64 environments": env_rate(*task, trace, threads),
        }
        for algorithm in ("sparse", "imap"):
            for count in num_envs:
                name = f"{'MAPPO' if algorithm == 'sparse' else 'IMAP'}, {count} environments"
                loop = run_loop(algorithm, count, options.steps, threads)
                loops.setdefault(name, []).append(loop)
                rates[name] = loop.steps_per_second
        if options.benchmarl_python is not None:
            for count in num_envs:
                for name, samplings in BENCHMARL.items():
                    rates[f"{name}, {count} environments"] = max(
                        run_other(
                            "benchmarl_rate.py", options.benchmarl_python, count, how, threads
                        )
                        for how in samplings
                    )
        if options.sb3_python is not None:
            for count in num_envs:
                rates[f"{SB3}, {count} environments"] = max(
                    run_other("sb3_rate.py", options.sb3_python, count, how, threads)
                    for how in ("serial", "parallel")
                )
        for name, rate in rates.items():
            rows.setdefault(name, []).append(rate)
        print(f"round {index + 1} of {options.rounds}: {rates}", file=sys.stderr, flush=True)
    return report(rows, loops, options)


def report(
    rows: dict[str, list[float]], loops: dict[str, list[Loop]], options: argparse.Namespace
) -> str:
    """Return medians, ratios, the time split and memory as Markdown tables."""
    lines = [
        "# Throughput: HalfCheetah 2x3, whole training loops",
        "",
        f"`python -m benchmarks.throughput {' '.join(sys.argv[1:])}`",
        f"at commit {commit()} on {machine()}; {options.threads} threads, {options.rounds} rounds,",
        "medians. Nets 2 x 64 tanh, 125 steps a rollout, 8 epochs of 4 minibatches everywhere.",
        "BenchMARL: the faster of its serial sampling and one that holds all environments.",
        "Stable-Baselines3: the faster of one process and a process for each environment, on",
        "gymnasium's HalfCheetah-v5, whose one agent drives all joints; ours are two agents.",
        "",
        "| what | steps/s | lowest, highest |",
        "| --- | --- | --- |",
    ]
    for name, rates in rows.items():
        spread = f"{min(rates):,.0f}, {max(rates):,.0f}"
        lines.append(f"| {name} | {statistics.median(rates):,.0f} | {spread} |")
    lines += ["", "| ratio, median over rounds | |", "| --- | --- |"]
    raw = "raw mujoco.rollout, 64 environments"
    pairs = [(name, raw) for name in rows if name != raw and not is_other(name)]
    for count in options.num_envs:
        pairs.append((f"IMAP, {count} environments", f"MAPPO, {count} environments"))
        for other in (*BENCHMARL, SB3):
            pairs.append((f"MAPPO, {count} environments", f"{other}, {count} environments"))
    for top, bottom in pairs:
        if top in rows and bottom in rows:
            ratio = statistics.median(a / b for a, b in zip(rows[top], rows[bottom], strict=True))
            text = f"{ratio:.1f} times" if is_other(bottom) else f"{ratio:.0%}"
            lines.append(f"| {top} / {bottom} | {text} |")
    lines += [
        "",
        f"| loop | {' | '.join(PARTS)} | resident MiB |",
        "| --- " * (len(PARTS) + 2) + "|",
    ]
    for name, measured in loops.items():
        totals = {part: sum(loop.seconds.get(part, 0.0) for loop in measured) for part in PARTS}
        shares = " | ".join(f"{totals[part] / sum(totals.values()):.0%}" for part in PARTS)
        memory = max(loop.resident_mib for loop in measured)
        lines.append(f"| {name} | {shares} | {memory:,.0f} |")
    return "\n".join(lines) + "\n"


def is_other(name: str) -> bool:
    """Return whether a row is another package's."""
    return name.startswith((*BENCHMARL, SB3))


def main() -> None:
    """Measure and print the report; with --output also write it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--num-envs", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=100_000, help="timed steps of each loop")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--benchmarl-python", type=Path, help="Python of BenchMARL's environment")
    parser.add_argument("--sb3-python", type=Path, help="Python of Stable-Baselines3's environment")
    parser.add_argument("--output", type=Path, help="Markdown file to write")
    options = parser.parse_args()
    text = measure(options)
    print(text)
    if options.output is not None:
        options.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
