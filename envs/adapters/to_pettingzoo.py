"""Any of our environments as a PettingZoo `ParallelEnv`.

Axes: N agents, O observation features, S state features, A actions.
"""

from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from pettingzoo import ParallelEnv

from envs.adapters.spaces import gym_space
from envs.base import EnvError, EnvStep, VecEnv, close_env
from envs.devices import step_on_host
from envs.parts import part_layout, wrong_parts
from envs.registry import make_env

Illegal = Literal["error", "replace"]
"""Whether an illegal action is an error, or the first legal one is taken and the info says so."""


def to_pettingzoo(name: str, illegal: Illegal = "error", **options: Any) -> "ParallelTeam":
    """Return one environment of the environment `name`; `options` are those of `make_env`."""
    return ParallelTeam(make_env(name, 1, **options), illegal)


class ParallelTeam(ParallelEnv):  # type: ignore[misc]  # PettingZoo has no types
    """One environment of a `VecEnv` for programs that speak PettingZoo.

    Agents are named ``agent_0`` to ``agent_(N-1)``, observe vectors of their own size, act in
    their own spaces (`EnvSpec.native_spaces`) and are all paid the team's reward. Where actions
    can be illegal, an observation is a dict of ``observation`` and ``action_mask``, PettingZoo's
    convention. An agent that dies is terminated and leaves `agents`. Infos hold the episode's
    facts by name, and `illegal_action` where an action was replaced.
    """

    def __init__(self, env: VecEnv, illegal: Illegal = "error") -> None:
        spec = env.spec
        if spec.num_envs != 1:
            raise EnvError(
                f"{spec.name} is a batch of {spec.num_envs} and a ParallelEnv is one environment; "
                "make it with num_envs=1"
            )
        if illegal not in get_args(Illegal):
            raise EnvError(f"illegal is {illegal!r}; choose 'error' or 'replace'")
        self._replaces = illegal == "replace"
        self.env = env
        """The environment inside."""
        self.metadata = {"name": spec.name, "render_modes": [], "is_parallelizable": True}
        self.render_mode = None
        self.possible_agents = [f"agent_{index}" for index in range(spec.num_agents)]
        self.agents: list[str] = []
        self.observation_spaces = dict(zip(self.possible_agents, self._obs_spaces(), strict=True))
        self.action_spaces = dict(zip(self.possible_agents, self._action_spaces(), strict=True))
        self.state_space = _numbers(spec.state_size, bool(spec.state_images))
        self._seeds = np.random.default_rng()
        self._mask: npt.NDArray[np.bool_] | None = None
        self._state = np.zeros(spec.state_size, self.state_space.dtype)

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        """Return the space of an agent's observations."""
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> spaces.Space[Any]:
        """Return the space of an agent's actions."""
        return self.action_spaces[agent]

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return first observations and infos; without `seed` the next of a sequence is used.

        The sequence begins at the last seed given. There are no `options`.
        """
        if seed is not None:
            self._seeds = np.random.default_rng(seed)
        step = step_on_host(self.env.reset(int(self._seeds.integers(2**63))))
        self.agents = self._living(step)
        self._state = step.state[0].copy()
        return self._seen(self.agents, step.obs, step.action_mask), self._infos(self.agents, step)

    def step(
        self, actions: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, float], dict[str, bool], dict[str, bool], dict[str, Any]]:
        """Return observations, rewards, terminations, truncations and infos of the living."""
        if not self.agents:
            raise EnvError(f"{self.env.spec.name}: the episode is over; call reset first")
        joined = self._joined(actions)
        replaced = self._replace_illegal(joined) if self._replaces else []
        step = step_on_host(self.env.step(joined))
        acted = self.agents
        terminated, truncated = bool(step.terminated[0]), bool(step.truncated[0])
        over = terminated or truncated
        # Once the episode is over, `alive` and the masks are those of the next one.
        living = self._living(step)
        if over:
            living = acted if step.final_alive is None else self._named(step.final_alive)
        present = [a for a in self.possible_agents if a in acted or (a in living and not over)]
        self._state = step.final_state[0].copy()
        self.agents = [] if over else living
        infos = self._infos(present, step)
        for agent in replaced:
            infos[agent]["illegal_action"] = True
        return (
            self._seen(present, step.final_obs, None if over else step.action_mask),
            dict.fromkeys(present, float(step.rewards[0])),
            {agent: terminated or agent not in living for agent in present},
            {agent: truncated and agent in living for agent in present},
            infos,
        )

    def state(self) -> npt.NDArray[Any]:
        """Return the (S,) state of the team."""
        return self._state

    def render(self) -> None:
        """Return nothing: there are no render modes."""

    def close(self) -> None:
        """Release what the environment holds; `reset` may start it again."""
        self.agents = []
        close_env(self.env)

    def _obs_spaces(self) -> list[spaces.Space[Any]]:
        """Return the agents' observation spaces."""
        spec = self.env.spec
        seen = [_numbers(size, bool(spec.obs_image)) for size in spec.obs_sizes]
        if not spec.masks_actions:
            return list(seen)
        choices = [len(own.choice_columns) for own in spec.own_spaces]
        masks = [spaces.Box(0, 1, (count,), np.int8) for count in choices]
        return [
            spaces.Dict({"observation": obs, "action_mask": mask})
            for obs, mask in zip(seen, masks, strict=True)
        ]

    def _action_spaces(self) -> list[spaces.Space[Any]]:
        """Return the agents' action spaces."""
        return [gym_space(own.act) for own in self.env.spec.own_spaces]

    def _living(self, step: EnvStep) -> list[str]:
        """Return the agents that take part."""
        return list(self.possible_agents) if step.alive is None else self._named(step.alive)

    def _named(self, alive: npt.NDArray[np.bool_]) -> list[str]:
        """Return the names of the agents that are alive by (1, N) flags."""
        return [a for a, lives in zip(self.possible_agents, alive[0], strict=True) if lives]

    def _seen(
        self, agents: list[str], obs: npt.NDArray[Any], mask: npt.NDArray[np.bool_] | None
    ) -> dict[str, Any]:
        """Return the agents' observations and remember the mask; None: all actions are legal."""
        spec = self.env.spec
        self._mask = None if mask is None else mask[0].copy()
        seen: dict[str, Any] = {}
        for agent in agents:
            index = self.possible_agents.index(agent)
            own = obs[0, index, : spec.obs_sizes[index]].copy()
            if spec.masks_actions:
                columns = spec.own_spaces[index].choice_columns
                legal = np.ones(len(columns), np.int8)
                if mask is not None:
                    legal[:] = mask[0, index, columns]
                seen[agent] = {"observation": own, "action_mask": legal}
            else:
                seen[agent] = own
        return seen

    def _infos(self, agents: list[str], step: EnvStep) -> dict[str, Any]:
        """Return the facts by name, the same for every agent."""
        names = [fact.name for fact in self.env.spec.facts]
        values = [] if step.facts is None else step.facts[0].tolist()
        return {agent: dict(zip(names, values, strict=True)) for agent in agents}

    def _joined(self, actions: dict[str, Any]) -> npt.NDArray[Any]:
        """Return the (1, N) or (1, N, A) actions; the dead do the first thing that is legal."""
        spec = self.env.spec
        missing = [agent for agent in self.agents if agent not in actions]
        if missing:
            raise EnvError(f"{spec.name}: no action for {', '.join(missing)}; give all agents one")
        joined = self._first_legal()
        for agent in self.agents:
            index = self.possible_agents.index(agent)
            own, action = spec.own_spaces[index], actions[agent]
            try:
                if spec.action_kind == "discrete":
                    joined[index] = action - own.act[0].start[0]
                elif spec.native_spaces or spec.action_kind == "composite":
                    joined[index, : spec.action_sizes[index]] = own.columns(action)
                else:
                    joined[index, : spec.action_sizes[index]] = action
            except EnvError as error:
                raise EnvError(f"{spec.name}: {agent}: {error}") from None
        return joined[None]

    def _first_legal(self) -> npt.NDArray[Any]:
        """Return (N,) or (N, A): the first legal of all choices, and zero of all numbers."""
        spec, mask = self.env.spec, self._mask
        if spec.action_kind == "discrete":
            if mask is None:
                return np.zeros(spec.num_agents, np.int64)
            return mask.argmax(axis=1).astype(np.int64)
        size = (spec.num_agents, spec.action_size)
        if spec.action_kind == "continuous":
            return np.zeros(size, np.float32)
        legal = np.ones(size) if mask is None else mask.astype(np.float64)
        return part_layout(spec.action_parts).one_hot(legal)

    def _replace_illegal(self, joined: npt.NDArray[Any]) -> list[str]:
        """Put the first legal action in place of illegal ones; return whose they were."""
        if self._mask is None:
            return []
        first = self._first_legal()
        if self.env.spec.action_kind == "discrete":
            illegal = ~np.take_along_axis(self._mask, joined[0, :, None], axis=1)[:, 0]
        else:
            layout = part_layout(self.env.spec.action_parts)
            illegal = wrong_parts(layout, joined, self._mask[None])[0]
        joined[0, illegal] = first[illegal]
        return [a for a, wrong in zip(self.possible_agents, illegal, strict=True) if wrong]


def _numbers(size: int, are_pixels: bool) -> spaces.Box:
    """Return the space of a vector of numbers, or of the pixels of pictures."""
    if are_pixels:
        return spaces.Box(0, 255, (size,), np.uint8)
    return spaces.Box(-np.inf, np.inf, (size,), np.float32)
