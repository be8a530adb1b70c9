"""One copy of a task, and how several copies lie side by side in memory.

Axes: E environment copies, N agents, O observation features, S state features, A actions,
F facts.

A third-party environment that steps one copy at a time becomes a `VecEnv` in two moves: a class
with the members of `Team`, and `envs.teams.environment.TeamEnv`, which runs any number of them.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from envs.base import BoolArray, EnvSpec, FloatArray

Records = npt.NDArray[np.void]
"""(E,) structured array: everything that one step of each copy returned."""


@dataclass(frozen=True, kw_only=True)
class TeamView:
    """Where a team writes what is seen after a reset or a step; views into one record.

    Features and choices beyond an agent's own size stay as they are: zero and illegal.
    """

    obs: FloatArray
    """(N, O) float32; zero for an agent that takes no part."""
    state: FloatArray
    """(S,) float32."""
    action_mask: BoolArray
    """(N, A); starts with each agent's own choices legal, left alone by a team without masks."""
    alive: BoolArray
    """(N,); starts True, left alone by a team in which nobody dies. After an episode's last step:
    who would have gone on, if it was interrupted."""
    facts: FloatArray
    """(F,) float32, in the order of `EnvSpec.facts`."""


class Team(Protocol):
    """One copy of a cooperative task. It never resets itself."""

    @property
    def spec(self) -> EnvSpec:
        """The constants of the task, with one copy."""
        ...

    def reset(self, seed: int, view: TeamView) -> None:
        """Start the episode that `seed` determines and write what is seen."""
        ...

    def step(self, actions: npt.NDArray[Any], view: TeamView) -> tuple[float, bool, bool]:
        """Apply (N,) integers or (N, A) floats in [-1, 1], write what is seen.

        Returns the team's reward, and whether the task terminated or was truncated; the time
        limit `EnvSpec.max_steps` is added by the caller.
        """
        ...

    def close(self) -> None:
        """Release what the copy holds."""
        ...


def record_dtype(spec: EnvSpec) -> np.dtype[np.void]:
    """Return the layout of one copy's record."""
    N, A = spec.num_agents, spec.action_size
    obs, state = (N, spec.obs_size), (spec.state_size,)
    return np.dtype(
        [
            ("rewards", np.float64),
            ("episodes", np.int64),
            ("obs", np.float32, obs),
            ("final_obs", np.float32, obs),
            ("state", np.float32, state),
            ("final_state", np.float32, state),
            ("facts", np.float32, (len(spec.facts),)),
            ("terminated", np.bool_),
            ("truncated", np.bool_),
            ("alive", np.bool_, (N,)),
            ("final_alive", np.bool_, (N,)),
            ("action_mask", np.bool_, (N, A)),
        ],
        align=True,
    )


def empty_records(spec: EnvSpec, num_copies: int) -> Records:
    """Return records in which nothing was seen, everybody lives and own choices are legal."""
    records: Records = np.zeros(num_copies, record_dtype(spec))
    records["alive"] = records["final_alive"] = True
    own = np.arange(spec.action_size) < np.asarray(spec.action_sizes)[:, None]
    records["action_mask"] = own
    return records


def view_of(records: Records, row: int) -> TeamView:
    """Return views into one copy's record."""
    names = ("obs", "state", "action_mask", "alive", "facts")
    return TeamView(**{name: records[name][row] for name in names})
