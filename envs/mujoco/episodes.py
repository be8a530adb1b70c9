"""When the episodes of many copies end.

Axes: E environment copies.
"""

from typing import Any

import numpy as np

from envs.base import BoolArray, EnvError
from envs.teams.time_limits import split_ends


class Episodes:
    """Steps of E running episodes."""

    def __init__(self, num_envs: int, max_steps: int, finite_horizon: bool) -> None:
        if max_steps < 1:
            raise EnvError(f"max_steps is {max_steps}; expected at least 1")
        self._max_steps, self._finite_horizon = max_steps, finite_horizon
        self._steps = np.zeros(num_envs, np.int64)

    def restart(self) -> None:
        """Forget all running episodes."""
        self._steps[:] = 0

    def advance(self, task_over: BoolArray) -> tuple[BoolArray, BoolArray]:
        """Count one step; return terminated and truncated, each (E,)."""
        self._steps += 1
        out_of_time = self._steps >= self._max_steps
        self._steps[task_over | out_of_time] = 0
        return split_ends(self._finite_horizon, task_over.copy(), out_of_time)

    def state_dict(self) -> dict[str, Any]:
        """Return the steps."""
        return {"steps": self._steps.copy()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self._steps[:] = state["steps"]
