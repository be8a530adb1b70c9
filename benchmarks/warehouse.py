"""How fast Jumanji's robot warehouse is beside the one in Python, and in CPU seconds.

Both play random legal actions in a tiny warehouse of two agents; Jumanji's ends an episode where
robots collide, the one in Python keeps them apart, so that they are not the same task. Needs the
extras ``jumanji`` and ``rware``::

    python -m benchmarks.warehouse --num-envs 1024
"""

import argparse
import time
from importlib.metadata import version

import numpy as np

from envs import make_env
from envs.rng import random_actions
from marl.utils.origin import commit, machine

NAMES = {"jumanji/warehouse_tiny_2ag": "jumanji", "gym/rware-tiny-2ag-v2": "rware"}


def rates(name: str, num_envs: int, steps: int) -> tuple[float, float]:
    """Return environment steps a second, and a second of CPU time of all threads."""
    options = {"workers": 0} if name.startswith("gym/") else {}
    env = make_env(name, num_envs, **options)
    draw, step = np.random.default_rng(0), env.reset(seed=0)
    spent = np.zeros(2)
    for index in range(steps + 2):  # the first two compile
        actions = random_actions(env.spec, draw, step.action_mask)
        began = np.array([time.perf_counter(), time.process_time()])
        step = env.step(actions)
        spent += (index > 1) * (np.array([time.perf_counter(), time.process_time()]) - began)
    by_clock, by_cpu = num_envs * steps / spent
    return float(by_clock), float(by_cpu)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-envs", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=100)
    args = parser.parse_args()
    print(f"{machine()}, commit {commit()}\n")
    print("| environment | package | environments | steps/s | steps/CPU s |\n|---|---|---|---|---|")
    for name, package in NAMES.items():
        num_envs = args.num_envs if package == "jumanji" else 16
        by_clock, by_cpu = rates(name, num_envs, args.steps)
        print(
            f"| {name} | {package} {version(package)} | {num_envs} | {by_clock:,.0f} "
            f"| {by_cpu:,.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
