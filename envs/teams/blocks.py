"""Several copies of a task stepped one after the other, with resets and time limits.

Axes: C copies of a block, N agents, A actions, L steps of an open episode.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from envs.base import EnvError, EnvSpec
from envs.randomness import uniform
from envs.teams.team import Records, Team, empty_records, view_of
from envs.teams.time_limits import split_ends
from envs.user_code import place_of

TeamMaker = Callable[[], Team]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Which episode every copy is to be in, and how far."""

    seeds: npt.NDArray[np.uint64]
    """(E,) one per copy."""
    episodes: npt.NDArray[np.int64]
    """(E,) episodes each copy has begun before this one."""
    lengths: npt.NDArray[np.int64]
    """(E,) steps already taken in it."""
    actions: npt.NDArray[Any]
    """(E, L, N) or (E, L, N, A): what was done in those steps."""


def new_episodes(seeds: npt.NDArray[np.uint64]) -> Plan:
    """Return the plan in which every copy begins its first episode."""
    nothing = np.zeros(len(seeds), np.int64)
    return Plan(seeds=seeds, episodes=nothing, lengths=nothing, actions=np.zeros((len(seeds), 0)))


def episode_seed(seed: np.uint64, episode: int) -> int:
    """Return a 31-bit seed that depends on the copy's seed and the episode's number only."""
    draw = uniform(np.array([seed], np.uint64), np.array([episode]), 1)
    return int(draw[0, 0] * 2**31)


class Block:
    """The copies `copies` of a task; each episode depends on its copy's seed and number only."""

    def __init__(
        self, make_team: TeamMaker, spec: EnvSpec, copies: range, num_rows: int | None = None
    ) -> None:
        """`num_rows` of records are kept if that is more than there are copies."""
        self._make_team = make_team
        self._spec = spec
        self._copies = copies
        self._teams: list[Team] = []
        self.records = empty_records(spec, num_rows or len(copies))
        self._views = [view_of(self.records, row) for row in range(len(copies))]
        self._seeds = np.zeros(len(copies), np.uint64)
        self._steps = [0] * len(copies)
        self.progress: npt.NDArray[np.int64] = np.array([copies.start, 0])
        """The copy called last, and the number of calls so far."""

    def start(self, plan: Plan) -> Records:
        """Return what every copy sees after replaying its open episode."""
        for row, copy in enumerate(self._copies):
            with self._named(row):
                if row == len(self._teams):
                    self._teams.append(self._make_team())
                self._seeds[row] = plan.seeds[copy]
                self._begin(row, int(plan.episodes[copy]))
                self._show_as_final(row)
            for t in range(plan.lengths[copy]):
                if self._step(row, plan.actions[copy, t]):
                    raise EnvError(
                        f"{self._name(row)} ended after {t + 1} of {plan.lengths[copy]} replayed "
                        "steps: it does not repeat under the same seed and actions, so a run of "
                        "it cannot be continued; draw its randomness from generators that "
                        "reset(seed) seeds"
                    )
        for name in ("rewards", "terminated", "truncated"):
            self.records[name] = 0
        return self.records

    def step(self, actions: npt.NDArray[Any]) -> Records:
        """Return what (C, N) or (C, N, A) actions led to; copies that ended were reset."""
        for row in range(len(self._copies)):
            if self._step(row, actions[row]):
                with self._named(row):
                    self._restart(row)
        return self.records

    def close(self) -> None:
        """Release what the copies hold."""
        for team in self._teams:
            team.close()
        self._teams = []

    def _begin(self, row: int, episode: int) -> None:
        """Start an episode; its end is not touched."""
        self.records["episodes"][row] = episode
        self._steps[row] = 0
        self._teams[row].reset(episode_seed(self._seeds[row], episode), self._views[row])

    def _restart(self, row: int) -> None:
        """Start the next episode; the facts still tell about the old one."""
        facts = self._views[row].facts.copy()
        self._begin(row, int(self.records["episodes"][row]) + 1)
        self._views[row].facts[:] = facts

    def _step(self, row: int, actions: npt.NDArray[Any]) -> bool:
        """Advance one copy, without a reset; return whether its episode ended."""
        records, spec = self.records, self._spec
        with self._named(row):
            reward, terminated, truncated = self._teams[row].step(actions, self._views[row])
        self._steps[row] += 1
        out_of_time = self._steps[row] >= spec.max_steps
        terminated, late = split_ends(spec.finite_horizon, terminated, out_of_time)
        truncated = (truncated or late) and not terminated
        records["rewards"][row] = reward
        records["terminated"][row] = terminated
        records["truncated"][row] = truncated
        self._show_as_final(row)
        return terminated or truncated

    def _show_as_final(self, row: int) -> None:
        """Copy what is seen now to where the end of the step is shown."""
        for name in ("obs", "state", "alive"):
            self.records[f"final_{name}"][row] = getattr(self._views[row], name)

    @contextmanager
    def _named(self, row: int) -> Iterator[None]:
        """Count a call, and name the copy in whatever it raises."""
        self.progress[0] = self._copies[row]
        self.progress[1] += 1
        try:
            yield
        except EnvError as error:
            raise EnvError(f"{self._name(row)}: {error}") from error
        except Exception as error:
            raise EnvError(
                f"{self._name(row)} raised {type(error).__name__}: {error} ({place_of(error)}); "
                "correct it there"
            ) from error

    def _name(self, row: int) -> str:
        """Return where we are, precise enough to be there again."""
        episode = int(self.records["episodes"][row])
        return (
            f"{self._spec.name}, copy {self._copies[row]} (episode {episode}, "
            f"reset(seed={episode_seed(self._seeds[row], episode)}), "
            f"after {self._steps[row]} steps)"
        )
