"""What worker processes gain for environments that step one at a time.

For each task the same environments take the same random steps in this process and in workers.
Run it with::

    python -m benchmarks.workers --workers 2
"""

import argparse
import time

import numpy as np

from envs.adapters.team_env import TeamEnv
from envs.registry import make_env
from envs.rng import random_actions
from marl.utils.origin import commit, machine

TASKS: dict[str, dict[str, str]] = {
    "mpe2.simple_spread_v3:parallel_env": {"team_reward": "mean"},
    "gym/Foraging-8x8-2p-2f-coop-v3": {},
    "gym/rware-tiny-2ag-v2": {},
    "pettingzoo.sisl.multiwalker_v9:parallel_env": {},
    "pettingzoo.sisl.pursuit_v5:parallel_env": {"team_reward": "mean"},
}
"""Tasks of rising cost, and their options."""


def made(name: str, num_envs: int, workers: int | None) -> TeamEnv:
    """Return a task with some or, with None, the advised number of workers."""
    env = make_env(name, num_envs, workers=workers, **TASKS[name])
    assert isinstance(env, TeamEnv)
    return env


def rate(env: TeamEnv, seconds: float) -> float:
    """Return steps per second, all environments together, from a fresh start."""
    rng = np.random.default_rng(0)
    mask = env.reset(seed=0).action_mask
    steps, spent = 0, 0.0
    while spent < seconds:
        actions = random_actions(env.spec, rng, mask)
        began = time.perf_counter()
        mask = env.step(actions).action_mask
        spent += time.perf_counter() - began
        steps += env.spec.num_envs
    return steps / spent


def main() -> None:
    """Print a Markdown table of rates, the medians of interleaved runs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--num-envs", type=int, default=16, help="environments")
    parser.add_argument("--workers", type=int, default=2, help="worker processes")
    parser.add_argument("--repeats", type=int, default=3, help="alternating measurements")
    parser.add_argument("--seconds", type=float, default=2.0, help="of stepping per measurement")
    options = parser.parse_args()
    print(f"{options.num_envs} environments at commit {commit()} on {machine()}\n")
    print(
        "| task | one process, steps/s | ms per step of a copy | "
        f"{options.workers} workers, steps/s | gain | chosen by itself |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    for name in TASKS:
        here, there = (made(name, options.num_envs, workers) for workers in (0, options.workers))
        rates = [
            (rate(here, options.seconds), rate(there, options.seconds))
            for _ in range(options.repeats)
        ]
        one, many = np.median(rates, axis=0)
        gain = np.median([many / one for one, many in rates])
        advised = made(name, options.num_envs, None).workers
        print(
            f"| {name} | {one:,.0f} | {1e3 / one:.2f} | {many:,.0f} | {gain:.2f} | "
            f"{f'{advised} workers' if advised else 'one process'} |",
            flush=True,
        )
        here.close()
        there.close()


if __name__ == "__main__":
    main()
