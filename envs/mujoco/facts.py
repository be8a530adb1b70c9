"""What is known of running MuJoCo episodes: how far they came, at what cost, and who fell.

Axes: n simulations, U actuators, F facts, P bodies whose progress counts.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from envs.base import BoolArray, Fact
from envs.mujoco.obs import Fields
from envs.mujoco.tasks import Array, Task

CONTROL_COST = Fact(
    name="control_cost",
    meaning="control cost, weighted squares of the controls in sum",
    higher_is_better=False,
)
TIME = Fact(name="time", meaning="simulated time", unit="s")
FELL = Fact(name="fell", meaning="fell (1) or not (0)", higher_is_better=False)


class EpisodeFacts:
    """Running numbers about the episodes of n simulations.

    The first is the scenario's own: the distance covered, to a goal, or the height.
    """

    def __init__(self, task: Task, start: Array, seconds: float, *, can_fall: bool) -> None:
        """`start`: (n, P) positions that progress counts from; `seconds`: of one step."""
        self._task = task
        self._seconds = seconds
        self.facts = (task.outcome, CONTROL_COST, TIME, *((FELL,) if can_fall else ()))
        """What the columns of `values` are."""
        self.values = np.zeros((len(start), len(self.facts)))
        """(n, F)"""
        self._start = start.copy()

    def begin(self, sims: npt.NDArray[np.intp], fields: Fields, position: Array) -> None:
        """Forget the episodes of some simulations; new ones begin at `position`."""
        self._start[sims] = position[sims]
        self.values[sims] = 0.0
        self.values[sims, 0] = self._task.progress(fields, position - self._start)[sims]

    def advance(
        self,
        sims: npt.NDArray[np.intp] | None,
        fields: Fields,
        position: Array,
        ctrl: Array,
        fallen: BoolArray,
    ) -> None:
        """Count one step of some simulations, by default of all."""
        moved = slice(None) if sims is None else sims
        values = self.values
        values[moved, 0] = self._task.progress(fields, position - self._start)[moved]
        cost = self._task.ctrl_weight / position.shape[1] * np.einsum("nu,nu->n", ctrl, ctrl)
        values[moved, 1] += cost[moved]
        values[moved, 2] += self._seconds
        if len(self.facts) > 3:
            values[moved, 3] = fallen[moved]

    def state_dict(self) -> dict[str, Any]:
        """Return the numbers and where progress counts from."""
        return {"values": self.values.copy(), "start": self._start.copy()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self.values[:] = state["values"]
        self._start[:] = state["start"]
