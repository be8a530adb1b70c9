"""One third-party environment: how it starts over, what its ends mean, what is known of some.

An episode ends as its source says: a termination is believed, at the time limit too. But there are
sources that report their own time limit as a termination (`Habits.limit_terminates`). There, an end
at that limit is the limit's, which `envs.teams.time_limits.split_ends` reads as every other one.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from envs.base import EnvSpec
from envs.teams.infos import TeamReward
from envs.teams.time_limits import found_time_limit


@dataclass(frozen=True, kw_only=True)
class Habits:
    """How the environments of a package behave where they have a choice."""

    limit_terminates: bool = False
    """They report their own time limit as a termination."""
    remake: bool = False
    """Their reset keeps traces of the episode before, so every episode needs a new one."""
    team_reward: TeamReward = "error"
    """What the team earns where its agents are paid differently."""


KNOWN = {
    # Its reset looks at where the players of the last episode stood.
    "lbforaging": Habits(limit_terminates=True, remake=True, team_reward="sum"),
    "rware": Habits(limit_terminates=True, team_reward="sum"),
    "pettingzoo.sisl.multiwalker": Habits(limit_terminates=True),
}
"""By the module that defines the innermost environment."""


def habits_of(env: Any) -> Habits:
    """Return what is known of an environment, whatever wraps it."""
    module = type(getattr(env, "unwrapped", env)).__module__
    for known, habits in KNOWN.items():
        if f"{module}.".startswith(f"{known}."):
            return habits
    return Habits()


class Source:
    """An environment that is made anew for each episode where that is needed."""

    def __init__(
        self, make: Callable[[], Any], *, remake: bool | None, limit_terminates: bool | None
    ) -> None:
        """None stands for what is known of the environment."""
        self._make = make
        self.env = make()
        """The present one."""
        self.habits = habits = habits_of(self.env)
        self._remake = habits.remake if remake is None else remake
        self._limit_terminates = (
            habits.limit_terminates if limit_terminates is None else limit_terminates
        )
        self._steps = 0

    def reset(self, seed: int) -> Any:
        """Return what the environment's own reset returns."""
        if self._remake:
            self.env.close()
            self.env = self._make()
        self._steps = 0
        return self.env.reset(seed=seed)

    def step(self, actions: Any) -> Any:
        """Return what the environment's own step returns."""
        self._steps += 1
        return self.env.step(actions)

    def ends(
        self, spec: EnvSpec, terminated: Iterable[Any], truncated: Iterable[Any]
    ) -> tuple[bool, bool]:
        """Return whether the task terminated or was truncated, once nobody acts any more.

        The flags are those of the last agents: the task was cut if one of them was. If none has a
        flag, the task has ended, unless it is time.
        """
        flags = [(bool(ended), bool(cut)) for ended, cut in zip(terminated, truncated, strict=True)]
        cut = any(cut and not ended for ended, cut in flags)
        claimed = any(ended for ended, _ in flags)
        own = found_time_limit(self.env)
        if self._steps >= (own.steps if own else spec.max_steps):
            cut = cut or self._limit_terminates or not claimed
        return not cut, cut

    def close(self) -> None:
        """Close the environment."""
        self.env.close()
