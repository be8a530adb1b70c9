"""Environments that compute on a GPU: what they return may stay there.

An environment on a device gives its large arrays, `KEPT`, as arrays of that device, of any library
that speaks DLPack, so that what agents observe never passes through host memory. Its small arrays
(rewards, ends, living agents, facts) are NumPy's as everywhere else, and it takes NumPy's actions.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from envs.base import EnvStep, VecEnv

KEPT = ("obs", "state", "final_obs", "final_state", "action_mask")
"""The arrays of `EnvStep` that may stay on a device."""


def keeps_arrays(device: str) -> bool:
    """Return whether an environment on this device gives arrays of it."""
    return device != "cpu"


def to_host(array: Any) -> npt.NDArray[Any]:
    """Return an array or a tensor of any device as NumPy's; NumPy's own as it is."""
    return np.asarray(array.cpu() if hasattr(array, "cpu") else array)


def step_on_host(step: EnvStep) -> EnvStep:
    """Return a step with NumPy's arrays for those of a device; the same step if it has none."""
    kept = {name: value for name in KEPT if is_elsewhere(value := getattr(step, name))}
    return replace(step, **{name: to_host(value) for name, value in kept.items()}) if kept else step


def is_elsewhere(array: Any) -> bool:
    """Return whether it is an array, but not NumPy's."""
    return hasattr(array, "__dlpack__") and not isinstance(array, np.ndarray)


class OnHost:
    """An environment whose steps hold NumPy's arrays only; it has all members of the inner one."""

    def __init__(self, env: VecEnv) -> None:
        self.inner = env
        """The environment, on whatever device."""

    def reset(self, seed: int) -> EnvStep:
        """Start a new episode in every environment."""
        return step_on_host(self.inner.reset(seed))

    def step(self, actions: npt.NDArray[Any]) -> EnvStep:
        """Apply the actions."""
        return step_on_host(self.inner.step(actions))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)
