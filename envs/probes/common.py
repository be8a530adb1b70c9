"""What the probes share: their constants and their sequences of cues.

Axes: C environment copies, T steps of an episode, N agents, K choices.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from envs.base import EnvError, EnvSpec, FloatArray

Steps = npt.NDArray[np.int64]
Actions = npt.NDArray[Any]


def discrete_spec(
    name: str,
    num_envs: int,
    max_steps: int,
    *,
    num_agents: int,
    size: int,
    masks_actions: bool = False,
    agents_die: bool = False,
) -> EnvSpec:
    """Return the constants of a task whose agents see `size` features and have `size` choices.

    The state is all observations side by side.
    """
    at_least_one(name, "num_agents", num_agents)
    at_least_one(name, "num_cues", size)
    return EnvSpec(
        name=f"probe/{name}",
        num_envs=num_envs,
        obs_sizes=(size,) * num_agents,
        state_size=size * num_agents,
        action_kind="discrete",
        action_sizes=(size,) * num_agents,
        max_steps=at_least_one(name, "max_steps", max_steps),
        finite_horizon=True,
        masks_actions=masks_actions,
        agents_die=agents_die,
    )


def at_least_one(env: str, option: str, value: int) -> int:
    """Return `value` if it is at least 1."""
    if value < 1:
        raise EnvError(f"probe/{env}: {option} is {value}; give at least 1")
    return value


def now(sequence: npt.NDArray[Any], steps: Steps) -> npt.NDArray[Any]:
    """Return what a (C, T + 1, ...) sequence shows each copy after its steps."""
    return sequence[np.arange(len(sequence)), steps]


def one_hot(choices: npt.NDArray[np.int64], size: int) -> FloatArray:
    """Return float32 rows of the identity."""
    return np.eye(size, dtype=np.float32)[choices]
