"""The team's state: what the environment says it is, or the observations side by side.

Axes: N agents, S state features.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from envs.base import EnvError
from envs.teams.team import TeamView


def joined_columns(obs_sizes: tuple[int, ...]) -> npt.NDArray[np.intp]:
    """Return where the agents' own features stand in the flattened (N, O) observations."""
    own = np.arange(max(obs_sizes)) < np.asarray(obs_sizes)[:, None]
    return np.flatnonzero(own)


class OwnState:
    """The environment's `state()`."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape = shape
        self.size = int(np.prod(shape))
        """S."""

    @classmethod
    def of(cls, env: Any) -> "OwnState | None":
        """Return the state of an environment that was reset, or None if it has none."""
        try:
            state = np.asarray(env.state())
        except (NotImplementedError, AttributeError):  # PettingZoo's ways of having no state
            return None
        return cls(state.shape) if state.size and state.dtype.kind in "fiub" else None

    def write(self, env: Any, view: TeamView, terminated: bool) -> bool:
        """Write the state, whose shape may not change; return whether there is one.

        Some environments have none any more once they have `terminated`. The last one is kept
        then: nothing is ever predicted from a terminal state.
        """
        try:
            state = np.asarray(env.state())
        except Exception:
            if terminated:
                return False
            raise
        if state.shape != self._shape:
            raise EnvError(
                f"state() had shape {self._shape} after the first reset and has {state.shape} now; "
                "set `--env.options own_state False`, then the observations stand for it"
            )
        view.state[:] = state.reshape(-1)
        return True
