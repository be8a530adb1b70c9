"""Measure the training throughput of Stable-Baselines3's PPO on single-agent HalfCheetah.

Stands alone: it imports nothing of this package and runs in an environment of its own.

    python3.11 -m venv sb3-env
    sb3-env/bin/pip install -r benchmarks/requirements-sb3.txt
    sb3-env/bin/python benchmarks/sb3_rate.py --num-envs 16 --sampling serial

`--sampling` says how the environments are advanced: `serial` one after the other (`DummyVecEnv`),
`parallel` in a process each (`SubprocVecEnv`).
"""

import argparse
import json
import time
from typing import Any

import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv


class Stopwatch(BaseCallback):
    """Notes the clock and the CPU when each rollout begins, the last one being the end."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[tuple[float, float]] = []

    def _on_rollout_start(self) -> None:
        self.times.append((time.perf_counter(), time.process_time()))

    def _on_step(self) -> bool:
        return True


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the rate over all iterations but the first, which warms up."""
    batch = arguments.num_envs * arguments.rollout
    maker = DummyVecEnv if arguments.sampling == "serial" else SubprocVecEnv
    env = make_vec_env("HalfCheetah-v5", arguments.num_envs, seed=0, vec_env_cls=maker)
    learner = PPO(
        "MlpPolicy",
        env,
        learning_rate=1e-3,
        n_steps=arguments.rollout,
        batch_size=batch // arguments.minibatches,
        n_epochs=arguments.epochs,
        policy_kwargs={"net_arch": [arguments.hidden, arguments.hidden]},
        device="cpu",
        seed=0,
    )
    stopwatch = Stopwatch()
    iterations = 2 + -(-arguments.steps // batch)  # the last one is begun and not counted
    learner.learn(iterations * batch, callback=stopwatch)
    env.close()
    (began, cpu_began), (ended, cpu_ended) = stopwatch.times[1], stopwatch.times[-1]
    steps = (len(stopwatch.times) - 2) * batch
    return {
        "steps_per_second": steps / (ended - began),
        "steps_per_cpu_second": steps / (cpu_ended - cpu_began),
        "steps": steps,
    }


def main() -> None:
    """Measure once and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20_000, help="timed steps, after the warm-up")
    parser.add_argument("--sampling", choices=["serial", "parallel"], default="serial")
    parser.add_argument("--num-envs", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2, help="PyTorch's threads")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--minibatches", type=int, default=4)
    parser.add_argument("--rollout", type=int, default=125, help="steps per copy and iteration")
    parser.add_argument("--hidden", type=int, default=64, help="width of the two hidden layers")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(json.dumps(measure(arguments)), flush=True)


if __name__ == "__main__":
    main()
