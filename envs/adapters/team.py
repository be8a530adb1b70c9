"""One environment of a third-party task, and several of them side by side in memory.

A third-party environment becomes a `VecEnv` in two moves: a class with the members of `Team`, and
`envs.adapters.team_env.TeamEnv`, which runs any number of them. What one step returned is a
*record*, one element of a structured array with the arrays of `envs.base.STEP_ARRAYS`; `Block`
steps several teams one after the other and writes their records.

Axes are those of `envs.base`; L: steps of an open episode.
"""

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from envs.base import STEP_ARRAYS, BoolArray, EnvError, EnvSpec, FloatArray, split_ends
from envs.plugins import failure, source_of
from envs.rng import uniform

Records = npt.NDArray[np.void]
"""(E,) structured array: everything that one step of each environment returned."""


@dataclass(frozen=True, kw_only=True)
class TeamView:
    """Where a team writes what is seen after a reset or a step; views into one record.

    Features and choices beyond an agent's own size stay as they are: zero and illegal.
    """

    obs: FloatArray
    """(N, O) float32, of pictures uint8; zero for an agent that takes no part."""
    state: FloatArray
    """(S,) float32, of pictures uint8."""
    action_mask: BoolArray
    """(N, A); starts with each agent's own choices legal, left alone by a team without masks."""
    alive: BoolArray
    """(N,); starts True, left alone by a team in which no agent dies. After an episode's last step:
    the agents alive after it, if it was truncated."""
    facts: FloatArray
    """(F,) float32, in the order of `EnvSpec.facts`."""


class Team(Protocol):
    """One environment of a cooperative task. It never resets itself."""

    @property
    def spec(self) -> EnvSpec:
        """The constants of the task, with one environment."""
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
        """Release what the environment holds."""
        ...


@runtime_checkable
class DrawnTeam(Protocol):
    """A `Team` whose environment may draw itself."""

    def picture(self) -> npt.NDArray[np.uint8] | None:
        """Return the environment's own (H, W, 3) picture of its state; None if it draws none."""
        ...


TeamMaker = Callable[[], Team]


def record_dtype(spec: EnvSpec) -> np.dtype[np.void]:
    """Return the layout of one environment's record: its episode's number, and its step."""
    arrays = [(name, a.dtype_in(spec), a.shape(spec)) for name, a in STEP_ARRAYS.items()]
    return np.dtype([("episodes", np.int64), *arrays], align=True)


def empty_records(spec: EnvSpec, num_envs: int) -> Records:
    """Return records that hold zeros; all agents are alive, their own actions legal."""
    records: Records = np.zeros(num_envs, record_dtype(spec))
    records["alive"] = records["final_alive"] = True
    own = np.arange(spec.action_size) < np.asarray(spec.action_sizes)[:, None]
    records["action_mask"] = own
    return records


def view_of(records: Records, row: int) -> TeamView:
    """Return views into one environment's record."""
    names = ("obs", "state", "action_mask", "alive", "facts")
    return TeamView(**{name: records[name][row] for name in names})


def joined_columns(obs_sizes: tuple[int, ...]) -> npt.NDArray[np.intp]:
    """Return where the agents' own features stand in the flattened (N, O) observations."""
    own = np.arange(max(obs_sizes)) < np.asarray(obs_sizes)[:, None]
    return np.flatnonzero(own)


@dataclass(frozen=True, kw_only=True)
class EpisodePlan:
    """Which episode every environment is to be in, and how far."""

    seeds: npt.NDArray[np.uint64]
    """(E,) one per environment."""
    episodes: npt.NDArray[np.int64]
    """(E,) episodes each environment has begun before this one."""
    lengths: npt.NDArray[np.int64]
    """(E,) steps already taken in it."""
    actions: npt.NDArray[Any]
    """(E, L, N) or (E, L, N, A): what was done in those steps."""


def new_episodes(seeds: npt.NDArray[np.uint64]) -> EpisodePlan:
    """Return the plan in which every environment begins its first episode."""
    nothing = np.zeros(len(seeds), np.int64)
    return EpisodePlan(
        seeds=seeds, episodes=nothing, lengths=nothing, actions=np.zeros((len(seeds), 0))
    )


def episode_seed(seed: np.uint64, episode: int) -> int:
    """Return a 31-bit seed that depends on the environment's seed and the episode's number only."""
    draw = uniform(np.array([seed], np.uint64), np.array([episode]), 1)
    return int(draw[0, 0] * 2**31)


class WorkerExit(SystemExit):
    """The worker process is to end: raised by its signal handler, in the midst of anything."""


class Block:
    """Steps the environments `indices` of a batch one after the other, and resets those that end.

    An episode depends only on its environment's seed and on its number in that environment.
    """

    def __init__(
        self, make_team: TeamMaker, spec: EnvSpec, indices: range, num_rows: int | None = None
    ) -> None:
        """`num_rows` of records are kept if that is more than there are environments."""
        self._make_team = make_team
        self._spec = spec
        self._indices = indices
        self._teams: list[Team] = []
        self.records = empty_records(spec, num_rows or len(indices))
        self._views = [view_of(self.records, row) for row in range(len(indices))]
        self._seeds = np.zeros(len(indices), np.uint64)
        self._steps = [0] * len(indices)
        self.progress: npt.NDArray[np.int64] = np.array([indices.start, 0])
        """Index of the environment called last, and the number of calls so far."""

    def start(self, plan: EpisodePlan) -> Records:
        """Return what every environment sees after replaying its open episode."""
        for row, index in enumerate(self._indices):
            with self._named(row, "reset"):
                if row == len(self._teams):
                    self._teams.append(self._make_team())
                self._seeds[row] = plan.seeds[index]
                self._begin(row, int(plan.episodes[index]))
                self._show_as_final(row)
            for t in range(plan.lengths[index]):
                if self._step(row, plan.actions[index, t]):
                    raise EnvError(
                        f"{self._name(row)} ended after {t + 1} of {plan.lengths[index]} replayed "
                        "steps: it does not repeat under the same seed and actions, so a run of "
                        "it cannot be continued; draw its randomness from generators that "
                        "reset(seed) seeds"
                    )
        for name in ("rewards", "terminated", "truncated"):
            self.records[name] = 0
        return self.records

    def step(self, actions: npt.NDArray[Any]) -> Records:
        """Return what (C, N) or (C, N, A) actions led to; environments that ended were reset."""
        for row in range(len(self._indices)):
            if self._step(row, actions[row]):
                with self._named(row, "reset"):
                    self._restart(row)
        return self.records

    def picture(self, row: int) -> npt.NDArray[np.uint8] | None:
        """Return an environment's own picture of its state, if it draws any."""
        team = self._teams[row]
        return team.picture() if isinstance(team, DrawnTeam) else None

    def close(self) -> None:
        """Release what the environments hold."""
        teams, self._teams = self._teams, []
        for team in teams:
            try:
                team.close()
            except (Exception, SystemExit) as error:  # must not hide why it is closed
                warnings.warn(f"{self._spec.name}: close raised {failure(error)}", stacklevel=2)

    def _begin(self, row: int, episode: int) -> None:
        """Start an episode; its end is not touched."""
        self.records["episodes"][row] = episode
        self._steps[row] = 0
        self._teams[row].reset(episode_seed(self._seeds[row], episode), self._views[row])
        self._check_finite(row)

    def _restart(self, row: int) -> None:
        """Start the next episode; the facts still tell about the old one."""
        facts = self._views[row].facts.copy()
        self._begin(row, int(self.records["episodes"][row]) + 1)
        self._views[row].facts[:] = facts

    def _step(self, row: int, actions: npt.NDArray[Any]) -> bool:
        """Advance one environment, without a reset; return whether its episode ended."""
        records, spec = self.records, self._spec
        with self._named(row, "step"):
            reward, terminated, truncated = self._teams[row].step(actions, self._views[row])
            self._check_finite(row, reward)
        self._steps[row] += 1
        out_of_time = self._steps[row] >= spec.max_steps
        terminated, late = split_ends(spec.finite_horizon, terminated, out_of_time)
        truncated = (truncated or late) and not terminated
        records["rewards"][row] = reward
        records["terminated"][row] = terminated
        records["truncated"][row] = truncated
        self._show_as_final(row)
        return terminated or truncated

    def _check_finite(self, row: int, reward: float = 0.0) -> None:
        """Raise if an environment shows or pays what is not a finite number."""
        view = self._views[row]
        if not math.isfinite(reward):
            raise EnvError(f"the reward is {reward}; pay finite numbers")
        for name, array in (("observation", view.obs), ("state", view.state)):
            if not np.isfinite(array).all():
                where = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
                of = f" of {self._spec.agent_name(where[0])}" if len(where) > 1 else ""
                raise EnvError(
                    f"number {where[-1]} of the {name}{of} is {array[where]}; show finite numbers"
                )

    def _show_as_final(self, row: int) -> None:
        """Copy what is seen now to where the end of the step is shown."""
        for name in ("obs", "state", "alive"):
            self.records[f"final_{name}"][row] = getattr(self._views[row], name)

    @contextmanager
    def _named(self, row: int, call: str) -> Iterator[None]:
        """Count a call, and name the environment, file and line in whatever it raises."""
        self.progress[0] = self._indices[row]
        self.progress[1] += 1
        try:
            yield
        except WorkerExit:
            raise
        except EnvError as error:
            blamed = self._blamed(row, call)
            place = "" if blamed is None else f" ({source_of(blamed)})"
            raise EnvError(f"{self._name(row)}: {error}{place}") from error
        except (Exception, SystemExit) as error:
            reason = failure(error, blamed=self._blamed(row, call))
            raise EnvError(f"{self._name(row)} raised {reason}") from error

    def _blamed(self, row: int, call: str) -> Callable[..., Any] | None:
        """Return the `reset` or `step` of the user's environment, if it is there and known."""
        source = getattr(self._teams[row], "source", None) if row < len(self._teams) else None
        return getattr(source, call, None)

    def _name(self, row: int) -> str:
        """Return where we are, precise enough to be there again."""
        episode = int(self.records["episodes"][row])
        return (
            f"{self._spec.name}, copy {self._indices[row]} (episode {episode}, "
            f"reset(seed={episode_seed(self._seeds[row], episode)}), "
            f"after {self._steps[row]} steps)"
        )
