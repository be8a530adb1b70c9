"""Gymnasium environments whose `reset` and `step` answer with one entry per agent.

Level-based foraging (``Foraging-...``) and the robot warehouse (``rware-...``) are such teams.

Axes: E environment copies, N agents, A actions.
"""

import importlib
from collections.abc import Mapping
from functools import partial
from importlib.util import find_spec
from typing import Any, cast

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium.spaces import Tuple

from envs.base import EnvError, EnvSpec
from envs.extras import install_hint
from envs.families import Maker
from envs.import_paths import search_working_directory
from envs.team_env import TeamEnv
from envs.team_infos import InfoFacts, check_team_reward, joint_reward, time_limit
from envs.team_spaces import AgentSpaces
from envs.team_states import joined_columns
from envs.teams import TeamView

GYM_TEAMS = ("Foraging-8x8-2p-2f-coop-v3", "rware-tiny-2ag-v2")
"""Usual ids; every other id of these families works too."""

_MODULES = {"Foraging": "lbforaging", "rware": "rware"}
"""Which package registers ids that begin so."""


def members() -> list[str]:
    """Return the usual ids of the packages that are installed."""
    return [env_id for env_id in GYM_TEAMS if find_spec(_MODULES[env_id.partition("-")[0]])]


def maker(member: str) -> Maker | None:
    """Return the maker of a gymnasium team."""
    return Maker(gym_team, {"env_id": member}) if member else None


def gym_team(
    num_envs: int,
    env_id: str,
    *,
    max_steps: int | None = None,
    finite_horizon: bool = False,
    team_reward: str = "sum",
    facts: str = "",
    remake: bool | None = None,
    workers: int | None = None,
    timeout: float = 120.0,
    **options: Any,
) -> TeamEnv:
    """Return `num_envs` copies of the registered environment ``env_id``, made with `options`.

    An id ``module:Id-v0`` is registered by importing the module. The other options are those of
    `envs.pettingzoo.pettingzoo`; the team earns the sum of what its agents are paid. Foraging is
    remade for every episode: its reset looks at where the players of the last one stood.
    """
    _register(env_id)
    if max_steps is not None and "max_steps" in gymnasium.spec(env_id.rpartition(":")[2]).kwargs:
        options["max_steps"] = max_steps
    team = partial(
        TupleTeam,
        env_id,
        options,
        max_steps=max_steps,
        finite_horizon=finite_horizon,
        team_reward=team_reward,
        facts=facts,
        remake=env_id.startswith("Foraging") if remake is None else remake,
    )
    return TeamEnv(team, num_envs, workers=workers, timeout=timeout)


class TupleTeam:
    """One gymnasium environment of tuples as a `Team`; nobody leaves before the end."""

    def __init__(
        self,
        env_id: str,
        options: dict[str, Any],
        *,
        max_steps: int | None,
        finite_horizon: bool,
        team_reward: str,
        facts: str,
        remake: bool,
    ) -> None:
        name = f"gym/{env_id}"
        self._make = partial(_made, env_id, options)
        self._remake = remake
        self._env = env = self._make()
        spaces = (env.observation_space, env.action_space)
        if not (isinstance(spaces[0], Tuple) and isinstance(spaces[1], Tuple)):
            raise EnvError(
                f"{name} is not a team: it observes {spaces[0]} and acts in {spaces[1]}; a team "
                "has a Tuple of one space per agent for each"
            )
        agents = [f"{name}, agent {index}" for index in range(len(spaces[0].spaces))]
        self._spaces = AgentSpaces(agents, spaces[0].spaces, spaces[1].spaces)
        self._team_reward = check_team_reward(team_reward)
        self._facts = InfoFacts(facts)
        self._columns = joined_columns(self._spaces.obs_sizes)
        self._steps = 0
        self._spec = EnvSpec(
            name=name,
            num_envs=1,
            obs_sizes=self._spaces.obs_sizes,
            state_size=len(self._columns),
            action_kind=self._spaces.action_kind,
            action_sizes=self._spaces.action_sizes,
            max_steps=time_limit(name, env, max_steps),
            finite_horizon=finite_horizon,
            masks_actions=any(self._spaces.masked),
            facts=self._facts.facts,
        )

    @property
    def spec(self) -> EnvSpec:
        """The constants of the task, with one copy."""
        return self._spec

    def reset(self, seed: int, view: TeamView) -> None:
        """Start the episode that `seed` determines and write what is seen."""
        if self._remake:
            self._env.close()
            self._env = self._make()
        obs, info = self._env.reset(seed=seed)
        self._steps = 0
        self._facts.restart()
        self._show(obs, info, view, over=False)

    def step(self, actions: npt.NDArray[Any], view: TeamView) -> tuple[float, bool, bool]:
        """Apply (N,) integers or (N, A) floats in [-1, 1]."""
        spec, spaces = self._spec, self._spaces
        chosen = tuple(spaces.action(agent, actions) for agent in range(spec.num_agents))
        obs, rewards, terminated, truncated, info = self._env.step(chosen)
        self._steps += 1
        ended, cut = bool(np.all(terminated)), bool(np.all(truncated))
        over = ended or cut
        self._show(obs, info, view, over)
        paid = np.ravel(cast(Any, rewards)).tolist()
        reward = joint_reward(self._team_reward, paid, len(paid))
        if over and self._steps >= spec.max_steps:
            return reward, spec.finite_horizon, not spec.finite_horizon
        return reward, ended, cut

    def close(self) -> None:
        """Close the environment."""
        self._env.close()

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


def _made(env_id: str, options: dict[str, Any]) -> gymnasium.Env[Any, Any]:
    """Return the environment, or say which option it does not have."""
    try:
        return gymnasium.make(env_id, disable_env_checker=True, **options)
    except TypeError as error:
        raise EnvError(f"gym/{env_id} with the options {options}: {error}; correct them") from error


def _register(env_id: str) -> None:
    """Import what registers an id: the module it names, or the package we know for it."""
    search_working_directory()
    named, _, bare = env_id.rpartition(":")
    module = named or _MODULES.get(bare.partition("-")[0])
    try:
        if module is not None:
            importlib.import_module(module)
        gymnasium.spec(bare)
    except (gymnasium.error.Error, ModuleNotFoundError) as error:
        fix = install_hint(module) if module and isinstance(error, ModuleNotFoundError) else None
        raise EnvError(
            f"there is no environment 'gym/{env_id}': {error}; "
            + (fix or f"give an id such as {GYM_TEAMS[0]}, or module:id if yours registers it")
        ) from error
