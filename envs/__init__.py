"""Cooperative multi-agent environments, their contract, and a checker for your own."""

import farama_notifications

from envs.base import (
    EnvError,
    EnvSpec,
    EnvStep,
    Fact,
    HasClose,
    HasHiddenRewards,
    VecEnv,
    close_env,
)
from envs.checker import check_env
from envs.frames import Frame, HasFrames
from envs.registry import env_names, make_env, open_env
from envs.simulated import SimulatedEnv, Task, View
from envs.sparse import SparseRewards, unwrapped

__all__ = [
    "EnvError",
    "EnvSpec",
    "EnvStep",
    "Fact",
    "Frame",
    "HasClose",
    "HasFrames",
    "HasHiddenRewards",
    "SimulatedEnv",
    "SparseRewards",
    "Task",
    "VecEnv",
    "View",
    "check_env",
    "close_env",
    "env_names",
    "make_env",
    "open_env",
    "unwrapped",
]

# gymnasium-robotics, imported later, prints a notice about hand tasks, which are none of ours.
farama_notifications.notifications.pop("gymnasium_robotics", None)
