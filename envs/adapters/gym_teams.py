"""Gymnasium environments whose `reset` and `step` answer with one entry per agent.

Level-based foraging (``Foraging-...``) and the robot warehouse (``rware-...``) are such teams.
Axes are those of `envs.base`.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, cast

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium.envs.registration import EnvSpec as Registered
from gymnasium.envs.registration import load_env_creator
from gymnasium.spaces import Tuple

from envs.adapters.quirks import (
    ThirdPartyEnv,
    ThirdPartyTeam,
    called,
    joint_reward,
    own_limit,
    third_party,
    time_limit,
)
from envs.adapters.spaces import AgentSpaces
from envs.adapters.team import TeamView
from envs.adapters.team_env import TeamEnv
from envs.base import BoolArray, EnvError, EnvSpec
from envs.catalogue import GYM_TEAMS
from envs.plugins import search_working_directory
from envs.registry import Maker, install_hint

_MODULES = {"Foraging": "lbforaging", "rware": "rware"}
"""Which package registers ids that begin so."""


def maker(member: str) -> Maker | None:
    """Return the maker of a gymnasium team."""
    return Maker(gym_team, {"env_id": member}) if member else None


def gym_team(
    num_envs: int,
    env_id: str,
    *,
    max_steps: int | None = None,
    finite_horizon: bool = False,
    team_reward: str | None = None,
    facts: str = "",
    limit_terminates: bool | None = None,
    remake: bool | None = None,
    action_limit: float | None = None,
    shrink: int = 1,
    grey: bool = False,
    repeats: bool | None = None,
    workers: int | None = None,
    timeout: float = 120.0,
    **options: Any,
) -> TeamEnv:
    """Return `num_envs` times the registered environment ``env_id``, made with `options`.

    An id ``module:Id-v0`` is registered by importing the module. The other options are those of
    `envs.adapters.pettingzoo.pettingzoo`. What is not given is what `envs.adapters.quirks` knows of
    the environment: Foraging and the warehouse pay the sum of their agents' rewards and call their
    time limit a termination, Foraging is remade for every episode.
    """
    registered = _registered(env_id)
    make = partial(_made, env_id, max_steps)
    options |= own_limit(_creator(registered), make, options, max_steps)
    team = partial(
        TupleTeam,
        name=f"gym/{env_id}",
        max_steps=max_steps,
        finite_horizon=finite_horizon,
        team_reward=team_reward,
        facts=facts,
        limit_terminates=limit_terminates,
        remake=remake,
        action_limit=action_limit,
        shrink=shrink,
        grey=grey,
    )
    return third_party(
        team, make, options, num_envs, workers=workers, timeout=timeout, repeats=repeats
    )


class TupleTeam(ThirdPartyTeam):
    """One gymnasium environment of tuples as a `Team`; no agent leaves before the end."""

    def __init__(
        self,
        make: Callable[[], Any],
        *,
        name: str,
        max_steps: int | None,
        finite_horizon: bool,
        team_reward: str | None,
        facts: str,
        limit_terminates: bool | None,
        remake: bool | None,
        action_limit: float | None,
        shrink: int,
        grey: bool,
    ) -> None:
        source = ThirdPartyEnv(make, remake=remake, limit_terminates=limit_terminates)
        env = source.env
        spaces = (env.observation_space, env.action_space)
        if not (isinstance(spaces[0], Tuple) and isinstance(spaces[1], Tuple)):
            raise EnvError(
                f"{name} is not a team: it observes {spaces[0]} and acts in {spaces[1]}; a team "
                "has a Tuple of one space per agent for each"
            )
        self._names = [f"agent {index}" for index in range(len(spaces[0].spaces))]
        agents = [f"{name}, {agent}" for agent in self._names]
        own = AgentSpaces(agents, spaces[0].spaces, spaces[1].spaces, action_limit, shrink, grey)
        super().__init__(source, own, team_reward, facts)
        self._spec = EnvSpec(
            name=name,
            num_envs=1,
            obs_sizes=self._spaces.obs_sizes,
            state_size=len(self._columns),
            obs_image=self._spaces.obs_image,
            state_images=self.joined_images,
            action_kind=self._spaces.action_kind,
            action_sizes=self._spaces.action_sizes,
            action_parts=self._spaces.action_parts,
            max_steps=time_limit(name, env, max_steps),
            finite_horizon=finite_horizon,
            masks_actions=any(self._spaces.masked),
            facts=self._facts.facts,
            native_spaces=self._spaces.native,
        )

    def reset(self, seed: int, view: TeamView) -> None:
        """Start the episode that `seed` determines and write what is seen."""
        obs, info = self._source.reset(seed)
        self._facts.restart()
        self._show(obs, info, view, over=False)

    def step(self, actions: npt.NDArray[Any], view: TeamView) -> tuple[float, bool, bool]:
        """Apply (N,) integers or (N, A) floats in [-1, 1]."""
        agents = range(self._spec.num_agents)
        chosen = tuple(self._spaces.action(agent, actions) for agent in agents)
        obs, rewards, terminated, truncated, info = self._source.step(chosen)
        ended, cut = self._ends(terminated, truncated)
        self._show(obs, info, view, ended or cut)
        paid = self._paid(rewards)
        return joint_reward(self._team_reward, paid, len(paid)), ended, cut

    def _ends(self, terminated: Any, truncated: Any) -> tuple[bool, bool]:
        """Return whether the task terminated or was truncated, which all agents must share."""
        flags = np.array(
            [self._flags(terminated, "terminated"), self._flags(truncated, "truncated")]
        )
        out = flags.any(axis=0)
        if not out.any():
            return False, False
        if not out.all():
            gone = ", ".join(self._names[agent] for agent in np.flatnonzero(out))
            raise EnvError(
                f"{gone} came to an end (terminated {terminated}, truncated {truncated}) while "
                "others go on; in a gymnasium team all end together. Make it a PettingZoo "
                "ParallelEnv if agents leave before the end"
            )
        return self._source.ends(self._spec, *flags)

    def _flags(self, flags: Any, what: str) -> BoolArray:
        """Return (N,) flags from one for the team or one for each agent."""
        given = np.asarray(flags, np.bool_)
        if given.shape not in {(), (len(self._names),)}:
            raise EnvError(
                f"{what} is {flags!r:.80}; return one truth value, or {len(self._names)}, one per "
                "agent"
            )
        return np.broadcast_to(given, len(self._names))

    def _paid(self, rewards: Any) -> dict[str, float]:
        """Return rewards by whom they are paid to: the team, or each agent."""
        paid = np.ravel(rewards).tolist()
        if len(paid) == 1:
            return {"team": paid[0]}
        if len(paid) != len(self._names):
            raise EnvError(
                f"{len(paid)} rewards for {len(self._names)} agents; return one for the team or "
                "one each"
            )
        return dict(zip(self._names, paid, strict=True))

    def _show(self, obs: Any, info: Any, view: TeamView, over: bool) -> None:
        """Write what the agents see."""
        if len(obs) != self._spec.num_agents:
            raise EnvError(
                f"{len(obs)} observations for {self._spec.num_agents} agents; return one each"
            )
        for agent, seen in enumerate(obs):
            self._spaces.write(agent, seen, view, over)
        infos = [info] if isinstance(info, Mapping) else list(info)
        self._facts.read(infos, over, view.facts)
        view.state[:] = view.obs.reshape(-1)[self._columns]


def _made(env_id: str, max_steps: int | None, options: dict[str, Any]) -> gymnasium.Env[Any, Any]:
    """Return the environment, or say which option it does not have.

    `max_steps` takes the place of a time limit that gymnasium was told to wrap around it.
    """
    registered = _registered(env_id)
    if registered.max_episode_steps is not None and max_steps is not None:
        registered = replace(registered, max_episode_steps=max_steps)
    kwargs = registered.kwargs | options
    make = partial(gymnasium.make, replace(registered, kwargs=kwargs), disable_env_checker=True)
    made: gymnasium.Env[Any, Any] = called(
        f"gym/{env_id}", "correct the options", _creator(registered), kwargs, make
    )
    return made


def _creator(registered: Registered) -> Callable[..., Any]:
    """Return the class or function that takes the options."""
    entry = registered.entry_point
    return load_env_creator(entry) if isinstance(entry, str) else cast(Callable[..., Any], entry)


def _registered(env_id: str) -> Registered:
    """Return what is registered by the module that an id names, or by the package known for it."""
    named, _, bare = env_id.rpartition(":")
    if named:  # a package that is known is not taken from there
        search_working_directory()
    module = named or _MODULES.get(bare.partition("-")[0])
    try:
        if module is not None:
            importlib.import_module(module)
        return gymnasium.spec(bare)
    except (gymnasium.error.Error, ModuleNotFoundError) as error:
        fix = install_hint(module) if module and isinstance(error, ModuleNotFoundError) else None
        raise EnvError(
            f"there is no environment 'gym/{env_id}': {error}; "
            + (
                fix
                or f"give an id such as {next(iter(GYM_TEAMS))}, or module:id if yours registers it"
            )
        ) from error
