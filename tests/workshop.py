"""A small PettingZoo team whose agents observe and act in any spaces, drawn from a seed."""

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Space, Tuple
from gymnasium.spaces.utils import flatten
from pettingzoo import ParallelEnv

OBSERVED: dict[str, Space[Any]] = {
    "discrete": Discrete(3, start=2),
    "multi_discrete": MultiDiscrete([[2, 3], [4, 2]], start=[[1, 0], [-1, 5]]),
    "multi_binary": MultiBinary((2, 2)),
    "tuple": Tuple([Discrete(2), Box(-1, 1, (2,))]),
    "dict": Dict(
        {
            "place": Box(-1, 1, (2, 2), np.float64),
            "held": Tuple([Discrete(3), Dict({"colour": MultiDiscrete([2, 3])})]),
            "picture": Box(0, 255, (2, 2, 1), np.uint8),
            "flags": MultiBinary(2),
        }
    ),
    "masked": Dict(
        {
            "place": Box(-1, 1, (2,)),
            "tool": Discrete(2),
            "action_mask": MultiBinary(3),
        }
    ),
    "masked_dict": Dict(
        {"observation": Dict({"tool": Discrete(2)}), "action_mask": MultiBinary(3)}
    ),
}
ACTED: dict[str, Space[Any]] = {
    "discrete": Discrete(3),
    "multi_discrete": MultiDiscrete([[2, 3], [2, 2]], start=[[0, 1], [0, -1]]),
    "multi_binary": MultiBinary(3),
    "box": Box(-2, 6, (2,), np.float64),
    "unbounded": Box(
        np.array([-np.inf, 0, -np.inf], np.float32), np.array([np.inf, np.inf, 3], np.float32)
    ),
    "tuple": Tuple([Discrete(2, start=5), Box(0, 1, (2,))]),
    "dict": Dict({"arm": Box(-1, 1, (1,)), "grip": Tuple([Discrete(3), MultiDiscrete([2, 2])])}),
}
MASKS: dict[str, Any] = {
    "discrete": np.array([0, 1, 1]),
    "multi_discrete": tuple(np.array(own) for own in ([1, 0], [0, 1, 1], [1, 1], [0, 1])),
    "multi_binary": np.array([1, 1, 0, 1, 1, 0]),
    "tuple": (np.array([0, 1]), None),
    "dict": {"arm": None, "grip": (np.array([1, 0, 1]), (np.array([0, 1]), np.array([1, 1])))},
}
"""For some of `ACTED`, a mask as gymnasium's `sample` takes it."""


class Workshop(ParallelEnv):  # type: ignore[type-arg]
    """Two agents; each step shows draws from their spaces. It ends after four.

    Actions are paid a number that depends on all that they hold. With `masks`, infos tell `MASKS`.
    """

    metadata = {"name": "workshop", "render_modes": ["rgb_array"]}  # noqa: RUF012  # its spelling
    possible_agents = ["ann", "bob"]  # noqa: RUF012  # PettingZoo's own spelling
    max_steps = 4

    def __init__(
        self,
        ann: str = "dict",
        bob: str = "tuple",
        ann_acts: str = "discrete",
        bob_acts: str = "discrete",
        masks: bool = False,
        render_mode: str | None = None,
    ) -> None:
        self.render_mode = render_mode
        self.spaces = copy.deepcopy({"ann": OBSERVED[ann], "bob": OBSERVED[bob]})
        self.acts = copy.deepcopy({"ann": ACTED[ann_acts], "bob": ACTED[bob_acts]})
        self.masks = {"ann": MASKS.get(ann_acts), "bob": MASKS.get(bob_acts)} if masks else {}
        self.received: list[Mapping[str, Any]] = []
        self.shown: list[Mapping[str, Any]] = []

    def observation_space(self, agent: str) -> Space[Any]:
        return self.spaces[agent]

    def action_space(self, agent: str) -> Space[Any]:
        return self.acts[agent]

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        self.agents, self.t = self.possible_agents[:], 0
        for index, agent in enumerate(self.agents):
            self.observation_space(agent).seed(None if seed is None else seed + index)
        return self._seen(), self._infos()

    def step(self, actions: Mapping[str, Any]) -> tuple[Any, Any, Any, Any, Any]:
        assert all(self.action_space(a).contains(action) for a, action in actions.items())
        self.received.append(dict(actions))
        self.t += 1
        acted, over = self.agents, self.t == self.max_steps
        self.agents = [] if over else acted
        ends = [dict.fromkeys(acted, ended) for ended in (False, over)]
        held = np.concatenate([flatten(self.acts[agent], actions[agent]) for agent in acted])
        paid = float(np.sin(held * np.arange(1, len(held) + 1)).sum())
        return self._seen(), dict.fromkeys(acted, paid), *ends, self._infos()

    def render(self) -> Any:
        """Return a picture as green as the episode is old."""
        return np.full((4, 6, 3), [0, 60 * self.t, 0], np.uint8)

    def _infos(self) -> dict[str, Any]:
        known = {agent: mask for agent, mask in self.masks.items() if mask is not None}
        return {
            agent: {"action_mask": known[agent]} if agent in known else {}
            for agent in self.possible_agents
        }

    def _seen(self) -> dict[str, Any]:
        seen = {agent: self.spaces[agent].sample() for agent in self.possible_agents}
        for obs in seen.values():
            if isinstance(obs, Mapping) and "action_mask" in obs:
                obs["action_mask"][self.t % 3] = 1
        self.shown.append(seen)
        return seen
