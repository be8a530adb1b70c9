"""What a third-party environment tells besides observations: facts and rewards.

Axes: N agents, F facts.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

import numpy as np

from envs.base import EnvError, Fact, FloatArray

TeamReward = Literal["sum", "mean", "error"]
"""What the team is paid where agents are paid differently; mean: over all agents of the team."""


class InfoFacts:
    """Numbers of the infos, by name; the latest value of the running episode is kept."""

    def __init__(self, names: str) -> None:
        """`names` are separated by commas."""
        self._names = [name.strip() for name in names.split(",") if name.strip()]
        self.facts = tuple(
            Fact(name=re.sub(r"\W", "_", name), meaning=f"the environment's {name}")
            for name in self._names
        )
        self._known: dict[str, float] = {}
        self._others: set[str] = set()

    def restart(self) -> None:
        """Forget the old episode."""
        self._known, self._others = {}, set()

    def read(self, infos: Iterable[Mapping[str, Any]], over: bool, row: FloatArray) -> None:
        """Write the (F,) numbers; one that several agents are told is averaged."""
        if not self._names:
            return
        told = list(infos)
        for info in told:
            self._others |= info.keys()
        for name in self._names:
            values = [_number(name, info[name]) for info in told if name in info]
            if values:
                self._known[name] = sum(values) / len(values)
            elif over and name not in self._known:
                raise EnvError(
                    f"no info of the whole episode held the fact {name!r}; its entries were "
                    f"{', '.join(sorted(self._others)) or 'none'}; correct "
                    "`--env.options facts NAMES`"
                )
        row[:] = [self._known.get(name, 0.0) for name in self._names]


def joint_reward(mode: TeamReward, paid: Mapping[str, Any], num_agents: int) -> float:
    """Return the team's reward from what agents, by name, were paid; "error": what all were."""
    rewards = list(paid.values())
    if mode == "mean":
        return float(sum(rewards)) / num_agents
    if mode == "sum":
        return float(sum(rewards))
    first = float(rewards[0])
    if any(abs(float(reward) - first) > 1e-6 * (1.0 + abs(first)) for reward in rewards[1:]):
        raise EnvError(different_rewards(paid))
    return first


def different_rewards(paid: Mapping[str, Any]) -> str:
    """Return what to say where agents that share one reward were paid differently."""
    listing = ", ".join(f"{name}: {float(reward):g}" for name, reward in paid.items())
    return (
        f"agents were paid differently ({listing}); this package trains teams that share one "
        "reward. If the agents are to be trained for their sum or mean, set "
        "`--env.options team_reward mean`; a competition is not learned so"
    )


def check_team_reward(mode: str) -> TeamReward:
    """Return the mode, or raise with the ones there are."""
    for known in get_args(TeamReward):
        if mode == known:
            return known
    raise EnvError(f"team_reward is {mode!r}; choose {', '.join(get_args(TeamReward))}")


def _number(name: str, value: Any) -> float:
    """Return an info's entry as a number."""
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "fiub":
        raise EnvError(f"the fact {name!r} is {value!r:.80}; name entries that hold one number")
    return float(array.reshape(()))
