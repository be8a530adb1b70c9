"""Any PettingZoo `ParallelEnv` as an environment.

Axes: E environment copies, N agents, S state features, A actions.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy.typing as npt

from envs.base import EnvError, EnvSpec
from envs.team_env import TeamEnv
from envs.team_infos import InfoFacts, check_team_reward, joint_reward, time_limit
from envs.team_spaces import AgentSpaces
from envs.team_states import OwnState, joined_columns
from envs.teams import TeamView

_MEMBERS = ("possible_agents", "reset", "step", "observation_space", "action_space")


def pettingzoo(
    factory: Callable[..., Any],
    name: str,
    /,
    num_envs: int,
    *,
    max_steps: int | None = None,
    finite_horizon: bool = False,
    team_reward: str = "error",
    facts: str = "",
    own_state: bool = True,
    agents_die: bool = True,
    remake: bool = False,
    workers: int | None = None,
    timeout: float = 120.0,
    **options: Any,
) -> TeamEnv:
    """Return `num_envs` copies of the environment `name`, which ``factory(**options)`` makes.

    `max_steps`, if not given, is the limit that the environment shows; an episode that reaches it
    is truncated, or terminated with `finite_horizon`, whatever the environment calls that end.
    `team_reward` is what agents that are paid differently earn together: "sum", "mean", or
    "error". `facts` names numbers of the infos, separated by commas. Without `own_state`, the
    observations side by side stand for ``state()``. `agents_die = False` promises that nobody
    leaves before the end. With `remake`, every episode gets a new environment, for one whose reset
    keeps traces of the episode before. `workers` and `timeout` are those of `TeamEnv`.
    """
    if max_steps is not None and _has_parameter(factory, "max_steps"):
        options["max_steps"] = max_steps
    team = partial(
        ParallelEnvTeam,
        factory,
        options,
        name=name,
        max_steps=max_steps,
        finite_horizon=finite_horizon,
        team_reward=team_reward,
        facts=facts,
        own_state=own_state,
        agents_die=agents_die,
        remake=remake,
    )
    return TeamEnv(team, num_envs, workers=workers, timeout=timeout)


class ParallelEnvTeam:
    """One `ParallelEnv` as a `Team`."""

    def __init__(
        self,
        factory: Callable[..., Any],
        options: dict[str, Any],
        *,
        name: str,
        max_steps: int | None,
        finite_horizon: bool,
        team_reward: str,
        facts: str,
        own_state: bool,
        agents_die: bool,
        remake: bool,
    ) -> None:
        self._make = partial(_made, name, factory, options)
        self._remake = remake
        self._env = env = self._make()
        self._names = list(env.possible_agents)
        self._index = {agent: index for index, agent in enumerate(self._names)}
        self._spaces = AgentSpaces(
            [f"{name}, agent {agent}" for agent in self._names],
            [env.observation_space(agent) for agent in self._names],
            [env.action_space(agent) for agent in self._names],
        )
        self._team_reward = check_team_reward(team_reward)
        self._facts = InfoFacts(facts)
        self._columns = joined_columns(self._spaces.obs_sizes)
        self._masks_in_info, self._own_state = self._looked_at(own_state)
        self._acting: list[int] = []
        self._steps = 0
        self._spec = EnvSpec(
            name=name,
            num_envs=1,
            obs_sizes=self._spaces.obs_sizes,
            state_size=self._own_state.size if self._own_state else len(self._columns),
            action_kind=self._spaces.action_kind,
            action_sizes=self._spaces.action_sizes,
            max_steps=time_limit(name, env, max_steps),
            finite_horizon=finite_horizon,
            masks_actions=self._masks_in_info or any(self._spaces.masked),
            agents_die=agents_die,
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
        obs, infos = _pair(self._env.reset(seed=seed))
        self._steps = 0
        self._facts.restart()
        self._acting = self._taking_part(set())
        if not self._acting:
            raise EnvError("no agent takes part after reset; list those that do in agents")
        self._show(self._acting, obs, infos, view, ended=False, cut=False)

    def step(self, actions: npt.NDArray[Any], view: TeamView) -> tuple[float, bool, bool]:
        """Apply (N,) integers or (N, A) floats in [-1, 1] of those that take part."""
        names, acting = self._names, self._acting
        obs, rewards, terminated, truncated, infos = self._env.step(
            {names[agent]: self._spaces.action(agent, actions) for agent in acting}
        )
        self._steps += 1
        out = {agent for agent in names if terminated.get(agent) or truncated.get(agent)}
        living = self._taking_part(out)
        ended, cut = self._ends(living, terminated, truncated)
        self._show(living or acting, obs, infos, view, ended, cut)
        if cut and not living:
            died = [a for a in acting if terminated.get(names[a]) and not truncated.get(names[a])]
            if len(died) < len(acting):  # else they only call the time limit an end
                view.alive[died] = False
        paid = [_entry(rewards, names[agent], "rewards") for agent in acting]
        self._acting = living
        return joint_reward(self._team_reward, paid, len(names)), ended, cut

    def close(self) -> None:
        """Close the environment."""
        self._env.close()

    def _ends(self, living: list[int], terminated: Any, truncated: Any) -> tuple[bool, bool]:
        """Return whether the task terminated or was truncated: when nobody acts any more.

        It was cut if one of the last agents was.
        """
        if living:
            return False, False
        if self._steps >= self._spec.max_steps:
            return self._spec.finite_horizon, not self._spec.finite_horizon
        last = [self._names[agent] for agent in self._acting]
        cut = any(truncated.get(agent) and not terminated.get(agent) for agent in last)
        return not cut, cut

    def _taking_part(self, out: set[Any]) -> list[int]:
        """Return the agents, by index, that act next."""
        try:
            present = sorted(self._index[agent] for agent in self._env.agents if agent not in out)
        except KeyError as error:
            raise EnvError(
                f"agent {error} is not among possible_agents {self._names}; list it there"
            ) from error
        return present

    def _show(
        self, shown: list[int], obs: Any, infos: Any, view: TeamView, ended: bool, cut: bool
    ) -> None:
        """Write what the agents `shown` see; the others see nothing."""
        names, spaces, over = self._names, self._spaces, ended or cut
        view.alive[:] = True
        if len(shown) < len(names):
            self._show_absent(shown, view, over)
        for agent in shown:
            name = names[agent]
            if over and name not in obs:
                spaces.write_absent(agent, view)
                continue
            spaces.write(agent, _entry(obs, name, "observations"), view, over)
            if self._masks_in_info and not over:
                mask = _entry(_entry(infos, name, "infos"), "action_mask", f"the info of {name}")
                spaces.write_mask(agent, mask, view)
        self._facts.read(infos.values(), over, view.facts)
        if self._own_state:
            self._own_state.write(self._env, view, ended)
        else:
            view.state[:] = view.obs.reshape(-1)[self._columns]

    def _show_absent(self, shown: list[int], view: TeamView, over: bool) -> None:
        """Write which agents take part."""
        if not (over or self._spec.agents_die):
            raise EnvError(
                f"only {len(shown)} of {len(self._names)} agents take part, but the option "
                "agents_die is False; leave it True"
            )
        for agent in set(range(len(self._names))).difference(shown):
            self._spaces.write_absent(agent, view)
        view.alive[:] = False
        view.alive[shown] = True

    def _looked_at(self, own_state: bool) -> tuple[bool, OwnState | None]:
        """Return, from one reset, whether infos hold masks, and the state if there is one."""
        _, infos = _pair(self._env.reset(seed=0))
        in_info = any(
            isinstance(info, Mapping) and "action_mask" in info for info in infos.values()
        )
        return in_info, OwnState.of(self._env) if own_state else None


def _made(name: str, factory: Callable[..., Any], options: dict[str, Any]) -> Any:
    """Return what the factory makes, if it is a `ParallelEnv`."""
    try:
        env = factory(**options)
    except TypeError as error:
        raise EnvError(
            f"{name} takes no num_envs, so it was called as the factory of a PettingZoo "
            f"ParallelEnv, with {options or 'no options'}: {error}; correct the options, or let "
            "an environment of your own take num_envs"
        ) from error
    missing = [member for member in _MEMBERS if not hasattr(env, member)]
    if hasattr(env, "agent_iter"):
        raise EnvError(
            f"{name} made an AEC environment, whose agents act in turn; name its parallel_env, or "
            "a function that wraps it with pettingzoo.utils.conversions.aec_to_parallel"
        )
    if missing:
        raise EnvError(
            f"{name} takes no num_envs, so it was taken for the factory of a PettingZoo "
            f"ParallelEnv, but it made a {type(env).__name__} without {', '.join(missing)}; "
            "an environment of your own is called as Class(num_envs=..., **options)"
        )
    return env


def _has_parameter(factory: Callable[..., Any], name: str) -> bool:
    return name in inspect.signature(factory).parameters


def _pair(answer: Any) -> tuple[Any, Any]:
    """Return observations and infos of a reset."""
    if not isinstance(answer, tuple) or len(answer) != 2:
        raise EnvError(
            f"reset returned a {type(answer).__name__}; a PettingZoo environment returns "
            "(observations, infos)"
        )
    return answer


def _entry(values: Any, key: Any, what: str) -> Any:
    """Return an agent's entry, or raise if it is missing."""
    try:
        return values[key]
    except KeyError as error:
        raise EnvError(f"{what} lacks {key!r}, which takes part; return one entry each") from error
