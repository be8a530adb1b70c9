"""From the agents' actions in [-1, 1] to the actuators of every simulation.

Axes: E environment copies, N agents, A action dimensions, U actuators of a whole copy.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from envs.base import EnvError


class Controls:
    """Turns actions into controls in each actuator's own units."""

    def __init__(
        self, num_envs: int, ranges: npt.NDArray[np.float64], parts: Sequence[Sequence[int]]
    ) -> None:
        """Prepare for (U, 2) control ranges; `parts` lists the actuators of each agent's vector."""
        self.sizes = tuple(map(len, parts))
        """Dimensions of each agent's action."""
        width = max(self.sizes)
        slots = {u: i * width + j for i, part in enumerate(parts) for j, u in enumerate(part)}
        assert sorted(slots) == list(range(len(ranges))), "each actuator needs exactly one agent"
        self._shape = (num_envs, len(parts), width)
        self._slots = np.array([slots[u] for u in range(len(ranges))], np.intp)
        low, high = np.asarray(ranges, np.float64).T
        self._centre, self._half = (low + high) / 2.0, (high - low) / 2.0

    def compute(self, actions: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Return (E, U) controls from (E, N, A) actions, clipped to [-1, 1]; padding is ignored."""
        if np.shape(actions) != self._shape:
            raise EnvError(
                f"actions have shape {np.shape(actions)}; expected {self._shape}: "
                "copies, agents, action dimensions"
            )
        flat = np.asarray(actions, np.float64).reshape(self._shape[0], -1)
        controls = flat.take(self._slots, axis=1)
        if not np.isfinite(controls).all():
            copy, actuator = np.argwhere(~np.isfinite(controls))[0]
            agent, part = divmod(int(self._slots[actuator]), self._shape[2])
            raise EnvError(
                f"action[{part}] of agent {agent} in copy {copy} is {controls[copy, actuator]}; "
                "actions must be finite numbers in [-1, 1]"
            )
        np.maximum(controls, -1.0, out=controls)
        np.minimum(controls, 1.0, out=controls)
        controls *= self._half
        controls += self._centre
        return controls
