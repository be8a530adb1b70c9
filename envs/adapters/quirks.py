"""What third-party environments do differently: limits, resets, rewards, what they tell.

An episode ends as its environment says: a termination is believed, at the time limit too. But
some environments report their own time limit as a termination (`Quirks.limit_terminates`). There,
an end at that limit is the limit's, which `envs.base.split_ends` reads as every other one.
"""

import inspect
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from envs.adapters.spaces import AgentSpaces, ObsBounds
from envs.adapters.team import Team, joined_columns
from envs.adapters.team_env import TeamEnv
from envs.base import EnvError, EnvSpec, Fact, FloatArray
from envs.native import described
from envs.plugins import failure

TeamReward = Literal["sum", "mean", "error"]
"""What the team is paid where agents are paid differently; mean: over all agents of the team."""


@dataclass(frozen=True, kw_only=True)
class Quirks:
    """How the environments of a package behave where they have a choice."""

    limit_terminates: bool = False
    """They report their own time limit as a termination."""
    remake: bool = False
    """Their reset keeps traces of the episode before, so every episode needs a new one."""
    team_reward: TeamReward = "error"
    """What the team earns where its agents are paid differently."""


KNOWN = {
    # Its reset looks at where the players of the last episode stood.
    "lbforaging": Quirks(limit_terminates=True, remake=True, team_reward="sum"),
    "rware": Quirks(limit_terminates=True, team_reward="sum"),
    "pettingzoo.sisl.multiwalker": Quirks(limit_terminates=True),
}
"""By the module that defines the innermost environment."""


def quirks_of(env: Any) -> Quirks:
    """Return what is known of an environment, whatever wraps it."""
    module = type(getattr(env, "unwrapped", env)).__module__
    for known, quirks in KNOWN.items():
        if f"{module}.".startswith(f"{known}."):
            return quirks
    return Quirks()


class ThirdPartyEnv:
    """An environment that is made anew for each episode where that is needed."""

    def __init__(
        self, make: Callable[[], Any], *, remake: bool | None, limit_terminates: bool | None
    ) -> None:
        """None stands for what is known of the environment."""
        self._make = make
        self.env = make()
        """The present one."""
        self.quirks = quirks_of(self.env)
        self._remake = self.quirks.remake if remake is None else remake
        self._limit_terminates = (
            self.quirks.limit_terminates if limit_terminates is None else limit_terminates
        )
        self._steps = 0

    def reset(self, seed: int) -> Any:
        """Return what the environment's own reset returns."""
        if self._remake:
            self.env.close()
            self.env = self._make()
        self._steps = 0
        try:
            return self.env.reset(seed=seed)
        except TypeError as error:
            if "unexpected keyword argument 'seed'" not in str(error):
                raise
            raise EnvError(
                "reset takes no seed; write reset(self, seed=None, options=None) and seed every "
                "generator with it"
            ) from error

    @property
    def source(self) -> Any:
        """The user's own environment, inside all wrappers."""
        return getattr(self.env, "unwrapped", self.env)

    def step(self, actions: Any) -> Any:
        """Return what the environment's own step returns."""
        self._steps += 1
        return self.env.step(actions)

    def ends(
        self, spec: EnvSpec, terminated: Iterable[Any], truncated: Iterable[Any]
    ) -> tuple[bool, bool]:
        """Return whether the task terminated or was truncated, once no agent acts any more.

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
        advice = hint if unknown else "correct that line, or the options it was given"
        raise EnvError(f"{name} with {_listed(options)} raised {failure(error, advice)}") from error


def _listed(options: dict[str, Any]) -> str:
    return f"the options {options}" if options else "no options"


_LIMITS = ("max_cycles", "max_steps", "max_episode_steps", "_max_episode_steps", "episode_limit")
_INNER = ("unwrapped", "env", "aec_env")


@dataclass(frozen=True)
class FoundLimit:
    """A time limit that an environment shows."""

    name: str
    """Of the attribute."""
    steps: int


def found_time_limit(env: Any) -> FoundLimit | None:
    """Return the time limit that an environment or what it wraps shows, or None."""
    layers, seen = [env], set()
    while layers:
        layer = layers.pop(0)
        if id(layer) in seen:
            continue
        seen.add(id(layer))
        for name in _LIMITS:
            limit = getattr(layer, name, None)
            if isinstance(limit, int | np.integer) and limit > 0 and not isinstance(limit, bool):
                return FoundLimit(name, int(limit))
        layers += [inner for name in _INNER if (inner := getattr(layer, name, None)) is not None]
    return None


def with_pictures(make: Callable[[dict[str, Any]], Any], options: dict[str, Any]) -> Any:
    """Return the environment that `make` makes with the options, drawing itself if it can."""
    env = make(options)
    modes = getattr(env, "metadata", {}).get("render_modes", ())
    if "render_mode" in options or "rgb_array" not in modes:
        return env
    try:
        drawn = make(options | {"render_mode": "rgb_array"})
    except Exception:  # whatever speaks against it, it can be played
        return env
    env.close()
    return drawn


def third_party(
    team: Callable[..., Team],
    make: Callable[[dict[str, Any]], Any],
    options: dict[str, Any],
    num_envs: int,
    *,
    workers: int | None,
    timeout: float,
    repeats: bool | None,
) -> TeamEnv:
    """Return `num_envs` teams of the environments that `make` makes with the options.

    `team` makes a team of what makes its environment; the others are those of `TeamEnv`.
    """
    return TeamEnv(
        partial(team, partial(make, options)),
        num_envs,
        workers=workers,
        timeout=timeout,
        repeats=repeats,
        drawn=partial(team, partial(with_pictures, make, options)),
    )


def time_limit(name: str, env: Any, max_steps: int | None) -> int:
    """Return the option if given, else the limit that the environment shows."""
    own = found_time_limit(env)
    if max_steps is None:
        if own is None:
            raise EnvError(
                f"{name} shows no time limit ({', '.join(_LIMITS)}), so its episodes might never "
                "end; set `--env.options max_steps 100`, or as many as one may take"
            )
        return own.steps
    if max_steps < 1:
        raise EnvError(f"{name}: max_steps is {max_steps}; expected at least 1")
    if own is not None and own.steps < max_steps:
        raise EnvError(
            f"{name}: max_steps is {max_steps}, but the environment ends its episodes itself after "
            f"{own.steps} steps, its {own.name}, and took no other limit; set max_steps to "
            f"{own.steps} or less, or raise the limit where the environment is made"
        )
    return max_steps


def own_limit(
    call: Callable[..., Any],
    make: Callable[[dict[str, Any]], Any],
    options: dict[str, Any],
    max_steps: int | None,
) -> dict[str, Any]:
    """Return the options that make `max_steps` the environment's own limit; empty if none do.

    `call` is what takes the options, `make` calls it with them. Where it hides what it takes behind
    ``**kwargs``, the name of the limit that the environment shows is tried.
    """
    if max_steps is None:
        return {}
    parameters = inspect.signature(call).parameters
    taken = [name for name in _LIMITS if name in parameters]
    hides = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    if hides and not taken:
        taken = _tried(make, options, max_steps)
    return {name: max_steps for name in taken if name not in options}


def _tried(
    make: Callable[[dict[str, Any]], Any], options: dict[str, Any], max_steps: int
) -> list[str]:
    """Return the name of the limit that an environment shows, if it is an option too."""
    env = make(options)
    shown = found_time_limit(env)
    env.close()
    name = shown.name.removeprefix("_") if shown else ""
    if not name or name in options:
        return []
    try:
        make(options | {name: max_steps}).close()
    except EnvError:
        return []
    return [name]


def joint_reward(mode: TeamReward, paid: Mapping[str, Any], num_agents: int) -> float:
    """Return the team's reward from what agents, by name, were paid; "error": what all were."""
    rewards = [_paid_number(name, reward) for name, reward in paid.items()]
    if mode == "mean":
        return sum(rewards) / num_agents
    if mode == "sum":
        return sum(rewards)
    first = rewards[0]
    if any(abs(reward - first) > 1e-6 * (1.0 + abs(first)) for reward in rewards[1:]):
        raise EnvError(different_rewards(dict(zip(paid, rewards, strict=True))))
    return first


def _paid_number(name: str, reward: Any) -> float:
    """Return an agent's reward as a number; an array of one number counts."""
    array = np.asarray(reward)
    if array.size != 1 or array.dtype.kind not in "fiub":
        raise EnvError(
            f"{name} was paid {described(reward)}; pay each agent one number, and make one of "
            "several objectives"
        )
    return float(array.reshape(()))


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


def _number(name: str, value: Any) -> float:
    """Return an info's entry as a number."""
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "fiub":
        raise EnvError(f"the fact {name!r} is {value!r:.80}; name entries that hold one number")
    return float(array.reshape(()))


class ThirdPartyTeam:
    """What every `Team` of one third-party environment has; the rest is how it is called."""

    _spec: EnvSpec

    def __init__(
        self, source: ThirdPartyEnv, spaces: AgentSpaces, team_reward: str | None, facts: str
    ) -> None:
        """`team_reward` and `facts` are the options; None stands for what is known of it."""
        self._source, self._spaces = source, spaces
        self._team_reward = check_team_reward(team_reward or source.quirks.team_reward)
        self._facts = InfoFacts(facts)
        self._columns = joined_columns(spaces.obs_sizes)
        """Where the agents' own features stand in the flattened observations."""

    @property
    def joined_images(self) -> tuple[int, ...]:
        """`EnvSpec.state_images` where the agents' observations side by side are the state."""
        image = self._spaces.obs_image
        return (len(self._spaces.native), *image) if image else ()

    @property
    def spec(self) -> EnvSpec:
        """The constants of the task, with one environment."""
        return self._spec

    @property
    def obs_bounds(self) -> ObsBounds | None:
        """What the observation spaces promise; None of pictures."""
        return self._spaces.obs_bounds

    @property
    def source(self) -> Any:
        """The user's own environment, for messages."""
        return self._source.source

    def picture(self) -> npt.NDArray[np.uint8] | None:
        """Return the environment's own (H, W, 3) picture of its state; None if it draws none."""
        env = self._source.env
        if getattr(env, "render_mode", None) != "rgb_array":
            return None
        try:
            picture = np.asarray(env.render())
        except Exception as error:  # a missing display must not end the film
            warnings.warn(f"{self._spec.name}: render raised {failure(error)}", stacklevel=2)
            return None
        if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
            return None
        return picture

    def close(self) -> None:
        """Close the environment."""
        self._source.close()
