"""Any PettingZoo `ParallelEnv` as an environment. Axes are those of `envs.base`."""

import math
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from envs.adapters.quirks import (
    ThirdPartyEnv,
    ThirdPartyTeam,
    called,
    joint_reward,
    own_limit,
    third_party,
    time_limit,
)
from envs.adapters.spaces import AgentSpaces, picture_of
from envs.adapters.team import TeamView
from envs.adapters.team_env import TeamEnv
from envs.base import EnvError, EnvSpec
from envs.native import Picture
from envs.plugins import source_of

_MEMBERS = ("possible_agents", "reset", "step", "observation_space", "action_space")


def pettingzoo(
    factory: Callable[..., Any],
    name: str,
    /,
    num_envs: int,
    *,
    max_steps: int | None = None,
    finite_horizon: bool = False,
    team_reward: str | None = None,
    facts: str = "",
    own_state: bool = True,
    agents_die: bool = True,
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
    """Return `num_envs` times the environment `name`, which ``factory(**options)`` makes.

    `max_steps` becomes the environment's own limit where it takes one; if not given, it is the
    limit that the environment shows. An episode that reaches it is truncated, or terminated with
    `finite_horizon`, unless the environment says that the task ended then. `limit_terminates` says
    that it calls its own time limit a termination, too. `team_reward` is what agents that are paid
    differently earn together: "sum", "mean", or "error". `facts` names numbers of the infos,
    separated by commas. Without `own_state`, the observations side by side stand for ``state()``.
    `agents_die = False` promises that no agent leaves before the end. With `remake`, every episode
    gets a new environment, for one whose reset keeps traces of the episode before. Numbers of
    actions without bounds lie in [-`action_limit`, `action_limit`]. Of pictures, squares of
    `shrink` by `shrink` pixels become one, and with `grey` so do their channels. What else is None
    is what `envs.adapters.quirks` knows of the environment. `workers`, `timeout` and `repeats` are
    those of `TeamEnv`.
    """
    make = partial(made, name, factory)
    options |= own_limit(factory, make, options, max_steps)
    team = partial(
        ParallelEnvTeam,
        name=name,
        max_steps=max_steps,
        finite_horizon=finite_horizon,
        team_reward=team_reward,
        facts=facts,
        own_state=own_state,
        agents_die=agents_die,
        limit_terminates=limit_terminates,
        remake=remake,
        action_limit=action_limit,
        shrink=shrink,
        grey=grey,
    )
    return third_party(
        team, make, options, num_envs, workers=workers, timeout=timeout, repeats=repeats
    )


class OwnState:
    """The environment's `state()`."""

    def __init__(self, shape: tuple[int, ...], picture: Picture | None) -> None:
        self._shape, self._picture = shape, picture
        self.images: tuple[int, ...] = () if picture is None else (1, *picture.reduced)
        """`EnvSpec.state_images`."""
        self.size = math.prod(self.images or shape)
        """S."""

    @classmethod
    def of(cls, env: Any, read_as: Callable[..., Picture | None]) -> "OwnState | None":
        """Return the state of an environment that was reset, or None if it has none.

        `read_as` says of a shape and a type how it is read as a picture.
        """
        try:
            state = np.asarray(env.state())
        except (NotImplementedError, AttributeError):  # PettingZoo's ways of having no state
            return None
        if not state.size or state.dtype.kind not in "fiub":
            return None
        return cls(state.shape, read_as(state.shape, state.dtype))

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
        if self._picture is not None:
            state = self._picture.read(state)
        view.state[:] = state.reshape(-1)
        return True


class ParallelEnvTeam(ThirdPartyTeam):
    """One `ParallelEnv` as a `Team`."""

    def __init__(
        self,
        make: Callable[[], Any],
        *,
        name: str,
        max_steps: int | None,
        finite_horizon: bool,
        team_reward: str | None,
        facts: str,
        own_state: bool,
        agents_die: bool,
        limit_terminates: bool | None,
        remake: bool | None,
        action_limit: float | None,
        shrink: int,
        grey: bool,
    ) -> None:
        source = ThirdPartyEnv(make, remake=remake, limit_terminates=limit_terminates)
        env = source.env
        self._names = list(env.possible_agents)
        self._index = {agent: index for index, agent in enumerate(self._names)}
        spaces = AgentSpaces(
            [f"{name}, agent {agent}" for agent in self._names],
            [env.observation_space(agent) for agent in self._names],
            [env.action_space(agent) for agent in self._names],
            action_limit,
            shrink,
            grey,
        )
        super().__init__(source, spaces, team_reward, facts)
        read_as = partial(picture_of, shrink=shrink, grey=grey)
        self._masks_in_info, self._own_state = self._looked_at(own_state, read_as)
        self._acting: list[int] = []
        self._spec = EnvSpec(
            name=name,
            num_envs=1,
            obs_sizes=self._spaces.obs_sizes,
            state_size=self._own_state.size if self._own_state else len(self._columns),
            obs_image=self._spaces.obs_image,
            state_images=self._own_state.images if self._own_state else self.joined_images,
            action_kind=self._spaces.action_kind,
            action_sizes=self._spaces.action_sizes,
            action_parts=self._spaces.action_parts,
            max_steps=time_limit(name, env, max_steps),
            finite_horizon=finite_horizon,
            masks_actions=self._masks_in_info or any(self._spaces.masked),
            agents_die=agents_die,
            facts=self._facts.facts,
            agent_names=tuple(map(str, self._names)),
            native_spaces=self._spaces.native,
        )

    def reset(self, seed: int, view: TeamView) -> None:
        """Start the episode that `seed` determines and write what is seen."""
        obs, infos = answered_reset(self._source.reset(seed))
        self._facts.restart()
        self._acting = self._taking_part(set())
        if not self._acting:
            raise EnvError("no agent takes part after reset; list those that do in agents")
        self._show(self._acting, obs, infos, view, over=False, terminated=False)

    def step(self, actions: npt.NDArray[Any], view: TeamView) -> tuple[float, bool, bool]:
        """Apply the (N,) integers or (N, A) floats of those that take part."""
        names, acting = self._names, self._acting
        obs, rewards, terminated, truncated, infos = self._source.step(
            {names[agent]: self._spaces.action(agent, actions) for agent in acting}
        )
        out = {agent for agent in names if terminated.get(agent) or truncated.get(agent)}
        living = self._taking_part(out)
        ended = cut = claimed = False
        if not living:
            last = [names[agent] for agent in acting]
            claimed = all(map(terminated.get, last))
            ended, cut = self._source.ends(
                self._spec, map(terminated.get, last), map(truncated.get, last)
            )
        told = self._show(living or acting, obs, infos, view, not living, ended or claimed)
        if cut and not told:  # gone with the task itself, which ended in the step of the limit
            ended, cut = True, False
        if cut and not living:
            died = [a for a in acting if terminated.get(names[a]) and not truncated.get(names[a])]
            if len(died) < len(acting):  # else they only call the time limit an end
                view.alive[died] = False
        paid = {str(names[agent]): entry(rewards, names[agent], "rewards") for agent in acting}
        self._acting = living
        return joint_reward(self._team_reward, paid, len(names)), ended, cut

    def _taking_part(self, out: set[Any]) -> list[int]:
        """Return the agents, by index, that act next."""
        try:
            present = sorted(
                self._index[agent] for agent in self._source.env.agents if agent not in out
            )
        except KeyError as error:
            raise EnvError(
                f"agent {error} is not among possible_agents {self._names}; list it there"
            ) from error
        return present

    def _show(
        self, shown: list[int], obs: Any, infos: Any, view: TeamView, over: bool, terminated: bool
    ) -> bool:
        """Write what the agents `shown` see; the others see nothing.

        Return whether there is a state, which there must be unless all have `terminated`.
        """
        names, spaces = self._names, self._spaces
        view.alive[:] = True
        if len(shown) < len(names):
            self._show_absent(shown, view, over)
        for agent in shown:
            name = names[agent]
            if over and name not in obs:
                spaces.write_absent(agent, view)
                continue
            spaces.write(agent, entry(obs, name, "observations"), view, over)
            if self._masks_in_info and not over and len(spaces.native[agent].choice_columns):
                mask = entry(entry(infos, name, "infos"), "action_mask", f"the info of {name}")
                spaces.write_mask(agent, mask, view)
        self._facts.read(infos.values(), over, view.facts)
        if self._own_state:
            return self._own_state.write(self._source.env, view, terminated)
        view.state[:] = view.obs.reshape(-1)[self._columns]
        return True

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

    def _looked_at(
        self, own_state: bool, read_as: Callable[..., Picture | None]
    ) -> tuple[bool, OwnState | None]:
        """Return, from one reset, whether infos hold masks, and the state if there is one."""
        try:
            _, infos = answered_reset(self._source.reset(0))
        except EnvError as error:
            raise EnvError(f"{error} ({source_of(self.source.reset)})") from error
        in_info = any(
            isinstance(info, Mapping) and "action_mask" in info for info in infos.values()
        )
        return in_info, OwnState.of(self._source.env, read_as) if own_state else None


def made(name: str, factory: Callable[..., Any], options: dict[str, Any]) -> Any:
    """Return the `ParallelEnv` that the factory makes, or an AEC environment as one; see
    `in_parallel`."""
    env = called(
        name,
        "it takes no num_envs, so it was called as the factory of a PettingZoo ParallelEnv; "
        "correct the options, or let an environment of your own take num_envs",
        factory,
        options,
    )
    if hasattr(env, "agent_iter"):
        env = in_parallel(name, env)
    missing = [member for member in _MEMBERS if not hasattr(env, member)]
    if missing:
        raise EnvError(
            f"{name} takes no num_envs, so it was taken for the factory of a PettingZoo "
            f"ParallelEnv, but it made a {type(env).__name__} without {', '.join(missing)}; "
            "an environment of your own is called as Class(num_envs=..., **options)"
        )
    return env


def in_parallel(name: str, env: Any) -> Any:
    """Return an AEC environment as a `ParallelEnv`, by PettingZoo's own wrapper.

    Nothing is lost where its metadata say ``is_parallelizable``: nothing changes there before the
    last agent of a round has acted. Elsewhere an agent sees what those before it did, which a team
    that acts at once would not; that is refused.
    """
    if not env.metadata.get("is_parallelizable", False):
        raise EnvError(
            f"{name} made an AEC environment whose agents act in turn, each seeing what those "
            "before it did: asked all at once, they would not. If it has a parallel_env, name "
            "that; if nothing changes before the last of a round has acted, say so: "
            "metadata['is_parallelizable'] = True"
        )
    from pettingzoo.utils.conversions import aec_to_parallel  # only AEC environments need it

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it has no render_mode
        return aec_to_parallel(env)


def answered_reset(answer: Any) -> tuple[Any, Any]:
    """Return observations and infos of a reset."""
    if not isinstance(answer, tuple) or len(answer) != 2:
        raise EnvError(
            f"reset returned a {type(answer).__name__}; a PettingZoo environment returns "
            "(observations, infos)"
        )
    return answer


def entry(values: Any, key: Any, what: str) -> Any:
    """Return an agent's entry, or raise if it is missing."""
    try:
        return values[key]
    except KeyError as error:
        raise EnvError(f"{what} lacks {key!r}, which takes part; return one entry each") from error
