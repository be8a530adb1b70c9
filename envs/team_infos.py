"""What a third-party environment tells besides observations: facts, time limits, team rewards.

Axes: N agents, F facts.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np

from envs.base import EnvError, Fact, FloatArray

TeamReward = Literal["sum", "mean", "error"]
"""What the team is paid where agents are paid differently; mean: over all agents of the team."""

_LIMITS = ("max_cycles", "max_steps", "max_episode_steps", "_max_episode_steps", "episode_limit")
_INNER = ("unwrapped", "env", "aec_env")


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
                    f"{', '.join(sorted(self._others)) or 'none'}; correct the option facts"
                )
        row[:] = [self._known.get(name, 0.0) for name in self._names]


def joint_reward(mode: TeamReward, rewards: Sequence[Any], num_agents: int) -> float:
    """Return the team's reward; with "error", the one that all agents were paid."""
    if mode == "mean":
        return float(sum(rewards)) / num_agents
    if mode == "sum":
        return float(sum(rewards))
    first = float(rewards[0])
    if any(abs(float(reward) - first) > 1e-6 * (1.0 + abs(first)) for reward in rewards[1:]):
        raise EnvError(
            f"agents were paid differently ({', '.join(f'{float(r):g}' for r in rewards)}); this "
            "package trains teams that share one reward. Set the option team_reward to sum or "
            "mean if the agents are to be trained for that; a competition is not learned so"
        )
    return first


def check_team_reward(mode: str) -> TeamReward:
    """Return the mode, or raise with the ones there are."""
    for known in get_args(TeamReward):
        if mode == known:
            return known
    raise EnvError(f"team_reward is {mode!r}; choose {', '.join(get_args(TeamReward))}")


def found_time_limit(env: Any) -> int | None:
    """Return the time limit in steps that an environment or what it wraps shows, or None."""
    layers, seen = [env], set()
    while layers:
        layer = layers.pop(0)
        if id(layer) in seen:
            continue
        seen.add(id(layer))
        for name in _LIMITS:
            limit = getattr(layer, name, None)
            if isinstance(limit, int | np.integer) and limit > 0 and not isinstance(limit, bool):
                return int(limit)
        layers += [inner for name in _INNER if (inner := getattr(layer, name, None)) is not None]
    return None


def time_limit(name: str, env: Any, max_steps: int | None) -> int:
    """Return the option if given, else the limit that the environment shows."""
    limit = found_time_limit(env) if max_steps is None else max_steps
    if limit is None:
        raise EnvError(
            f"{name} shows no time limit ({', '.join(_LIMITS)}), so its episodes might never end; "
            "set the option max_steps"
        )
    if limit < 1:
        raise EnvError(f"{name}: max_steps is {limit}; expected at least 1")
    return limit


def _number(name: str, value: Any) -> float:
    """Return an info's entry as a number."""
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "fiub":
        raise EnvError(f"the fact {name!r} is {value!r:.80}; name entries that hold one number")
    return float(array.reshape(()))
