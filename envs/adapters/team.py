"""Calling what makes a third-party environment, and saying whose fault it is if that fails."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from envs.base import BoolArray, EnvError, EnvSpec, FloatArray
from envs.plugins import place_of

# One copy of a task, and how several copies lie side by side in memory.
#
# Axes: E environment copies, N agents, O observation features, S state features, A actions, F
# facts.
#
# A third-party environment that steps one copy at a time becomes a `VecEnv` in two moves: a class
# with the members of `Team`, and `envs.adapters.team_env.TeamEnv`, which runs any number of them.


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


# The team's state: what the environment says it is, or the observations side by side.
#
# Axes: N agents, S state features.


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


def called(
    name: str,
    hint: str,
    call: Callable[..., Any],
    options: dict[str, Any],
    make: Callable[[], Any] | None = None,
) -> Any:
    """Return ``call(**options)``, or what `make` makes, where that calls it by another way.

    Options that `call` does not take are the user's mistake, which `hint` explains; a `TypeError`
    from inside of it is not.
    """
    try:
        inspect.signature(call).bind(**options)
    except TypeError as error:
        raise EnvError(f"{name} with {_listed(options)}: {error}; {hint}") from error
    try:
        return call(**options) if make is None else make()
    except TypeError as error:
        unknown = any(f"unexpected keyword argument '{key}'" in str(error) for key in options)
        raise EnvError(
            f"{name} with {_listed(options)}: {error} (TypeError in {place_of(error)}); "
            + (hint if unknown else "correct that line, or the options it was given")
        ) from error


def _listed(options: dict[str, Any]) -> str:
    return f"the options {options}" if options else "no options"
