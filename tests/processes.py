"""Processes of a run that are processes: work in each of them, and a labeller that kills one."""

import os
import signal
import socket
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from marl import EpisodePairs

ROOT = Path(__file__).parents[1]
CALLS_BEFORE_DEATH = 7
"""Of a labeller that is asked twice in an iteration: it dies in the fourth."""
SIX_ITERATIONS: dict[str, Any] = {
    "algorithm": "imap",
    "env.name": "particles/nav_3",
    "env.num_envs": 4,
    "network.hidden_sizes": [8],
    "learner.rollout_steps": 25,
    "learner.epochs": 2,
    "learner.minibatches": 2,
    "reward.hidden_sizes": [8],
    "reward.gradient_steps": 2,
    "reward.batch_episodes": 8,
    "preferences.replay_steps": 800,
    "checkpoint_every": 200,
    "total_steps": 600,
}
"""Settings of six iterations of 100 steps, with a checkpoint every second."""
_calls = 0


def fatal(pairs: EpisodePairs) -> Tensor:
    """Prefer the shorter episode, and kill process 1 in its fourth iteration, the first time."""
    global _calls
    _calls += 1
    is_first_time = os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0"
    if os.environ.get("RANK") == "1" and is_first_time and _calls > CALLS_BEFORE_DEATH:
        os.kill(os.getpid(), signal.SIGKILL)
    return (pairs.first.returns > pairs.second.returns).float()


def free_port() -> int:
    """Return a port that nobody uses now."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


def in_processes(size: int, work: str, folder: Path, seconds: float = 120.0) -> list[Any]:
    """Return what the function ``module:name`` returns in each of several processes."""
    port = free_port()
    processes = []
    for rank in range(size):
        environment = {
            "RANK": str(rank),
            "WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-m", "tests.processes", work, str(folder / f"{rank}.pt")]
        processes.append(subprocess.Popen(command, cwd=ROOT, env=os.environ | environment))
    try:
        assert [process.wait(seconds) for process in processes] == [0] * size
    finally:
        for process in processes:
            process.kill()
    return [torch.load(folder / f"{rank}.pt") for rank in range(size)]


def main(work: str, out: str) -> None:
    """Join the other processes, work, and write down what that returned."""
    from marl.utils.distributed import joined

    torch.set_num_threads(1)
    module, name = work.split(":")
    with joined() as ranks:
        found = getattr(import_module(module), name)(ranks)
    torch.save(found, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
