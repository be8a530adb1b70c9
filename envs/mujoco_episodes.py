"""When episodes end and what they pay: sparse rewards and time limits for many copies.

Axes: E environment copies.
"""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from envs.base import BoolArray, EnvError
from envs.mujoco_source import choose

RewardMode = Literal["episodic", "dense"]
"""Episodic: zero until an episode ends, then its dense rewards' sum. Dense: each as it comes."""


class Episodes:
    """Steps and returns of E running episodes."""

    def __init__(
        self, num_envs: int, max_steps: int, finite_horizon: bool, reward_mode: str
    ) -> None:
        if max_steps < 1:
            raise EnvError(f"max_steps is {max_steps}; expected at least 1")
        self._max_steps, self._finite_horizon = max_steps, finite_horizon
        self._episodic = choose("reward_mode", reward_mode, ("episodic", "dense")) == "episodic"
        self._steps = np.zeros(num_envs, np.int64)
        self._returns = np.zeros(num_envs)
        self.dense = np.zeros(num_envs)
        """(E,) dense rewards of the latest step."""

    def restart(self) -> None:
        """Forget all running episodes."""
        for array in (self._steps, self._returns, self.dense):
            array[:] = 0

    def advance(
        self, dense: npt.NDArray[np.float64], task_over: BoolArray
    ) -> tuple[npt.NDArray[np.float64], BoolArray, BoolArray]:
        """Count one step; return rewards, terminated and truncated, each (E,).

        A step that both ends the task and reaches the time limit is terminated only.
        """
        self.dense[:] = dense
        self._steps += 1
        self._returns += dense
        out_of_time = self._steps >= self._max_steps
        over = task_over | out_of_time
        rewards = np.where(over, self._returns, 0.0) if self._episodic else self.dense.copy()
        self._steps[over] = 0
        self._returns[over] = 0.0
        if self._finite_horizon:
            return rewards, over, np.zeros_like(over)
        return rewards, task_over.copy(), out_of_time & ~task_over

    def state_dict(self) -> dict[str, Any]:
        """Return steps, returns and the latest dense rewards."""
        return {
            "steps": self._steps.copy(),
            "returns": self._returns.copy(),
            "dense": self.dense.copy(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self._steps[:] = state["steps"]
        self._returns[:] = state["returns"]
        self.dense[:] = state["dense"]
