"""What several processes gain where the environment is slow, and what they exchange.

Run it on a quiet machine with::

    python -m benchmarks.scale

It measures exchanges of several sizes among 2 and 4 processes of this machine (gloo, loopback),
then steps/s of one process and of two on an environment whose every step takes 5 ms, once by
waiting (a game in a process of its own) and once by computing. From both it models more machines.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from gymnasium.spaces import Box, Discrete
from pettingzoo import ParallelEnv
from torch import Tensor

import marl
from marl.utils.distributed import ProcessRanks, joined
from marl.utils.origin import commit, machine
from marl.utils.ranks import Ranks

ROOT = Path(__file__).parents[1]
SIZES = (1, 1_000, 10_000, 30_000, 100_000, 300_000, 1_000_000)
"""Numbers of four bytes in an exchange."""
AGENTS, FEATURES, LENGTH = 3, 16, 50
SETTINGS: dict[str, Any] = {
    "algorithm": "imap",
    "env.name": "benchmarks.scale:Slow",
    "learner.rollout_steps": 50,
    "threads": 1,
    "preferences.replay_steps": 40_000,
}


class Slow(ParallelEnv[str, np.ndarray, int]):
    """A team whose every step takes a given time, by waiting or by computing."""

    max_steps = LENGTH

    def __init__(self, milliseconds: float = 5.0, computes: bool = False) -> None:
        self.metadata = {"name": "slow"}
        self.possible_agents = [f"agent_{k}" for k in range(AGENTS)]
        self.seconds, self.computes = milliseconds / 1000.0, computes

    def observation_space(self, agent: str) -> Box:
        """Return what an agent observes: noise."""
        return Box(-1.0, 1.0, (FEATURES,))

    def action_space(self, agent: str) -> Discrete:
        """Return what it does: one of five things."""
        return Discrete(5)

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        """Begin an episode."""
        if seed is not None:
            self.rng = np.random.default_rng(seed)
        self.agents, self.time = self.possible_agents[:], 0
        return self._observed(), {agent: {} for agent in self.agents}

    def step(self, actions: dict[str, int]) -> Any:
        """Take the time, and pay whoever has chosen 0."""
        until = time.perf_counter() + self.seconds
        if self.computes:
            while time.perf_counter() < until:
                pass
        else:
            time.sleep(self.seconds)
        self.time += 1
        agents, is_over = self.agents, self.time == LENGTH
        seen = self._observed()
        self.agents = [] if is_over else agents
        every = dict.fromkeys(agents, False)
        rewards = {agent: float(actions[agent] == 0) for agent in agents}
        return seen, rewards, every, dict.fromkeys(agents, is_over), {a: {} for a in agents}

    def _observed(self) -> dict[str, Any]:
        return {
            agent: self.rng.uniform(-1, 1, FEATURES).astype(np.float32) for agent in self.agents
        }


@dataclass(frozen=True)
class Counting(ProcessRanks):
    """Processes that note what they exchange."""

    def noted(self, kind: str, num_bytes: int, began: float) -> None:
        """Count an exchange and its seconds."""
        exchanges.append((kind, num_bytes, time.perf_counter() - began))

    def sum_(self, tensor: Tensor, group: str) -> Tensor:
        began = time.perf_counter()
        super().sum_(tensor, group)
        self.noted("sum", tensor.numel() * tensor.element_size(), began)
        return tensor

    def any(self, flag: bool) -> bool:
        began = time.perf_counter()
        found = super().any(flag)
        self.noted("flag", 8, began)
        return found

    def gather(self, value: object) -> list[Any]:
        began = time.perf_counter()
        found = super().gather(value)
        self.noted("gather", 0, began)
        return found


exchanges: list[tuple[str, int, float]] = []


def train(ranks: Ranks, num_envs: int, iterations: int, computes: bool) -> dict[str, float]:
    """Return the rate of a short run, and what a process exchanged in an iteration."""
    if isinstance(ranks, ProcessRanks):
        ranks = Counting(**{name: getattr(ranks, name) for name in ranks.__dataclass_fields__})
    options: dict[str, Any] = {"workers": 0, "reward_mode": "episodic", "team_reward": "mean"}
    config = marl.load_config(
        overrides=SETTINGS
        | {
            "env.num_envs": num_envs,
            "env.options": options | {"computes": computes},
            "total_steps": num_envs * SETTINGS["learner.rollout_steps"] * iterations,
        }
    )
    rows = []
    for row in marl.train(config, ranks=ranks):
        rows.append((row, list(exchanges)))
        exchanges.clear()
    later = rows[2:]
    found = [one for _, part in later for one in part]
    count = len(later)
    return {
        "rate": statistics.median(row["time/steps_per_second"] for row, _ in later),
        "environment": statistics.median(row["time/physics"] for row, _ in later),
        "exchanges": len(found) / count,
        "kilobytes": sum(size for _, size, _ in found) / count / 1000.0,
        "exchanging": sum(seconds for _, _, seconds in found) / count,
    }


def exchange(ranks: Ranks, repeats: int) -> dict[int, float]:
    """Return the median seconds of a sum of so many numbers."""
    medians = {}
    for size in SIZES:
        tensor, taken = torch.ones(size), []
        for _ in range(repeats):
            ranks.any(False)
            began = time.perf_counter()
            ranks.sum_(tensor, "measured")
            taken.append(time.perf_counter() - began)
            tensor.fill_(1.0)
        medians[size] = statistics.median(taken)
    return medians


def started(processes: int, *arguments: str, module: str = "benchmarks.scale") -> Any:
    """Return what process 0 of several that run a module prints last, read as JSON."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    torchrun += ["--nproc-per-node", str(processes)]
    command = [sys.executable] if processes == 1 else torchrun
    said = subprocess.run(
        [*command, "-m", module, *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
    return json.loads(said.strip().splitlines()[-1])


def modelled(
    environment: float, update: float, small: float, num_exchanges: float, numbers: Sequence[int]
) -> Iterator[tuple[int, float]]:
    """Yield numbers of machines, and how many times one machine's rate they have together.

    `environment` and `update` are the seconds of an iteration of one machine, which are divided;
    every exchange is a ring of 2 (n - 1) messages, each of which takes half of `small`, the
    measured time of two.
    """
    for n in numbers:
        seconds = (environment + update) / n + num_exchanges * (n - 1) * small
        yield n, (environment + update) / seconds


def main() -> None:
    """Print Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--num-envs", type=int, default=8, help="environments of all processes")
    parser.add_argument("--iterations", type=int, default=8, help="of which two are not measured")
    parser.add_argument("--repeats", type=int, default=3, help="runs, of which the median counts")
    parser.add_argument("--part", choices=("train", "exchange"), help=argparse.SUPPRESS)
    parser.add_argument("--computes", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part is not None:
        torch.set_num_threads(1)
        with joined() as ranks:
            found: Any = (
                exchange(ranks, 200)
                if options.part == "exchange"
                else train(ranks, options.num_envs, options.iterations, options.computes)
            )
            if ranks.rank == 0:
                print(json.dumps(found), flush=True)
        return
    print(f"commit {commit()} on {machine()}, load {os.getloadavg()[0]:.1f} at the start\n")
    times = {n: started(n, "--part", "exchange") for n in (2, 4)}
    print("| numbers in an exchange | 2 processes, ms | 4 processes, ms |\n| --- | --- | --- |")
    for size in SIZES:
        both = [1000.0 * times[n][str(size)] for n in (2, 4)]
        print(f"| {size:,} | {both[0]:.2f} | {both[1]:.2f} |")
    print(
        "\n| 5 ms a step | 1 process, steps/s | 2 processes, steps/s | gain | exchanges an "
        "iteration | KB | ms, waiting for one another included |\n"
        "| --- | --- | --- | --- | --- | --- | --- |"
    )
    common = ["--part", "train", "--num-envs", str(options.num_envs)]
    common += ["--iterations", str(options.iterations)]
    for way in ("waiting", "computing"):
        extra = ["--computes"] if way == "computing" else []
        pairs = [[started(n, *common, *extra) for n in (1, 2)] for _ in range(options.repeats)]
        one, two = (
            {name: statistics.median(pair[k][name] for pair in pairs) for name in pairs[0][k]}
            for k in (0, 1)
        )
        gain = statistics.median(pair[1]["rate"] / pair[0]["rate"] for pair in pairs)
        print(
            f"| {way} | {one['rate']:,.0f} | {two['rate']:,.0f} | {gain:.2f} | "
            f"{two['exchanges']:.0f} | {two['kilobytes']:,.0f} | {1000 * two['exchanging']:.0f} |"
        )
    steps = options.num_envs * SETTINGS["learner.rollout_steps"]
    update = steps / one["rate"] - one["environment"]
    print(
        f"\nOne machine: {one['environment']:.2f} s of environment and {update:.2f} s of update "
        f"for {steps:,} steps. Times one machine's rate, at most:\n"
    )
    print(
        "| an exchange of two takes | batch | 2 | 8 | 64 machines |\n"
        "| --- | --- | --- | --- | --- |"
    )
    measured = times[2]["10000"]
    for small, name in ((measured, "measured here"), (0.001, "1 ms")):
        for factor in (1, 10, 100):
            row = modelled(
                factor * one["environment"], factor * update, small, two["exchanges"], (2, 8, 64)
            )
            cells = " | ".join(f"{gain:.1f}" for _, gain in row)
            print(f"| {1000 * small:.2f} ms ({name}) | {factor * steps:,} steps | {cells} |")


if __name__ == "__main__":
    main()
    if dist.is_initialized():
        dist.destroy_process_group()
