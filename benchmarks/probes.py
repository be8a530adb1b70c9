"""Learned rewards on tasks of known optimum: mean returns over the last tenth of a run, by seed.

    python -m benchmarks.probes --tasks keys --algorithms rrd rudder slf --seeds 10 11 12

The learning tests (`tests/learning/test_probes_learn.py`) have the same settings. One thread; a row
is printed as soon as it is there.
"""

import argparse
import statistics
import time

import numpy as np
import torch

from marl import Trainer, load_config
from marl.utils.origin import commit, machine

TASKS = {
    "keys": (8_000, 1.0, 0.25),
    "local_credit": (15_000, 8.0, 4.0),
    "dying": (15_000, 4.5, 2.25),
    "continuous_match": (30_000, 0.0, -16 / 3),
}
"""Steps, optimum, and return of random play."""
ALGORITHMS = ("sparse", "ircr", "rrd", "rudder", "arel", "stas", "tar2", "slf", "imap")
SETTINGS: dict[str, object] = {
    "env.num_envs": 32,
    "threads": 1,
    "learner.rollout_steps": 8,
    "learner.epochs": 4,
    "learner.minibatches": 2,
    "learner.learning_rate": 3e-3,
    "network.hidden_sizes": [32],
    "reward.hidden_sizes": [32],
    "reward.mixer_hidden": 32,
    "reward.learning_rate": 3e-3,
    "preferences.replay_steps": 8192,
    "preferences.replay_episodes": 512,
}


def late_return(task: str, algorithm: str, seed: int, gradient_steps: int) -> float:
    """Return the mean return over the last tenth of a run."""
    steps = TASKS[task][0]
    chosen = {"env.name": f"probe/{task}", "algorithm": algorithm, "total_steps": steps}
    fitted = {"seed": seed, "reward.gradient_steps": gradient_steps}
    trainer = Trainer(load_config(overrides=SETTINGS | chosen | fitted))
    returns = [trainer.iterate()["return/mean"] for _ in range(trainer.config.num_iterations)]
    trainer.close()
    return float(np.nanmean(returns[-len(returns) // 10 :]))


def main() -> None:
    """Print a row for every task and algorithm."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--algorithms", nargs="+", choices=ALGORITHMS, default=list(ALGORITHMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[10, 11, 12, 13, 14])
    parser.add_argument(
        "--gradient-steps", type=int, default=6, help="in an iteration of 256 steps"
    )
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"commit {commit()} on {machine()}; {chosen.gradient_steps} gradient steps an iteration\n"
    )
    print("| task | algorithm | by seed | mean | CPU s a run |\n| --- | --- | --- | --- | --- |")
    for task in chosen.tasks:
        for algorithm in chosen.algorithms:
            before = time.process_time()
            found = [
                late_return(task, algorithm, seed, chosen.gradient_steps) for seed in chosen.seeds
            ]
            seconds = (time.process_time() - before) / len(found)
            each = ", ".join(f"{value:.2f}" for value in found)
            mean = statistics.fmean(found)
            print(f"| {task} | {algorithm} | {each} | {mean:.2f} | {seconds:.1f} |", flush=True)


if __name__ == "__main__":
    main()
