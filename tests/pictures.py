"""A team that sees pictures, small enough to be learned in seconds."""

from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from gymnasium.spaces import Box, Discrete
from pettingzoo import ParallelEnv

Pixels = npt.NDArray[np.uint8]
STEPS = 5
"""Steps of an episode, in each of which a team is paid at most 1; at random .5 in the mean."""


class Sides(ParallelEnv[str, Pixels, int]):
    """Each agent sees a bright square on the left or on the right of noise, and says where."""

    metadata: ClassVar[dict[str, Any]] = {"name": "sides"}
    render_mode = None
    possible_agents: ClassVar[list[str]] = ["first", "second"]
    max_steps = STEPS

    def __init__(self, shape: tuple[int, ...] = (16, 16, 3), has_state: bool = False) -> None:
        """`shape` is that of a picture; its last axis, or the first of 1 to 3, are channels."""
        self.shape, self.has_state = shape, has_state

    def observation_space(self, agent: str) -> Box:
        return Box(0, 255, self.shape, np.uint8)

    def action_space(self, agent: str) -> Discrete:
        return Discrete(2)

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Pixels], dict[str, Any]]:
        self.rng = np.random.default_rng(seed)
        self.agents, self.t = self.possible_agents[:], 0
        return self._seen(), {agent: {} for agent in self.agents}

    def step(self, actions: dict[str, int]) -> tuple[Any, ...]:
        right = [actions[a] == int(self.sides[i]) for i, a in enumerate(self.possible_agents)]
        self.t += 1
        over = self.t == STEPS
        obs, everyone = self._seen(), self.possible_agents
        self.agents = [] if over else self.agents
        return (
            obs,
            dict.fromkeys(everyone, float(np.mean(right))),
            dict.fromkeys(everyone, False),
            dict.fromkeys(everyone, over),
            {agent: {} for agent in everyone},
        )

    def state(self) -> Pixels:
        if not self.has_state:
            raise NotImplementedError
        return np.stack([self.obs[agent] for agent in self.possible_agents])[0]

    def _seen(self) -> dict[str, Pixels]:
        self.sides = self.rng.integers(2, size=2)
        self.obs = {}
        for agent, side in zip(self.possible_agents, self.sides, strict=True):
            picture = self.rng.integers(0, 120, (16, 16, 3), dtype=np.uint8)
            start = 8 * int(side)
            picture[4:12, start : start + 8] = 255
            first = self.shape[0] < 8
            own = np.moveaxis(picture, -1, 0) if first else picture
            self.obs[agent] = own if len(self.shape) == 3 else picture[..., 0]
        return self.obs
