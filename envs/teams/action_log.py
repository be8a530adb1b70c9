"""What was done in every copy since its open episode began.

Axes: E environment copies, L steps of the longest open episode, N agents, A actions.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from envs.base import BoolArray


class ActionLog:
    """The actions of E open episodes; grows with the longest of them."""

    def __init__(self, num_envs: int) -> None:
        self.lengths = np.zeros(num_envs, np.int64)
        """(E,) steps taken."""
        self._actions: npt.NDArray[Any] = np.zeros((num_envs, 0))

    def add(self, actions: npt.NDArray[Any], ended: BoolArray) -> None:
        """Append (E, N) or (E, N, A) actions; forget the episodes that ended with them."""
        held = self._actions.shape[1]
        if held == 0:
            self._actions = np.zeros((len(actions), 64, *actions.shape[1:]), actions.dtype)
        elif self.lengths.max() == held:
            self._actions = np.concatenate([self._actions, np.zeros_like(self._actions)], axis=1)
        self._actions[np.arange(len(actions)), self.lengths] = actions
        self.lengths += 1
        self.lengths[ended] = 0

    def restore(self, lengths: npt.NDArray[np.int64], actions: npt.NDArray[Any]) -> None:
        """Continue with (E,) lengths and (E, L, ...) actions, as `lengths` and `actions` gave."""
        self.lengths, self._actions = lengths.copy(), actions.copy()

    @property
    def actions(self) -> npt.NDArray[Any]:
        """(E, L, N) or (E, L, N, A); zero beyond a copy's own length."""
        longest = int(self.lengths.max())
        kept = self._actions[:, :longest].copy()
        kept[np.arange(longest) >= self.lengths[:, None]] = 0
        return kept
