"""Registers small gymnasium teams for tests: two agents, four steps."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete, Tuple


class Pair(gymnasium.Env[Any, Any]):
    """Agent 0 sees (draw, t), agent 1 sees (t,); `paid` is "each" or "team".

    After `length` steps it ends: both are terminated, or `end` says whom what happens to: "mixed"
    terminates agent 0 and truncates agent 1, "partial" only terminates agent 0.
    """

    observation_space = Tuple([Box(-9, 9, (2,)), Box(-9, 9, (1,))])
    action_space = Tuple([Discrete(2), Discrete(3)])

    def __init__(
        self, paid: str = "each", length: int = 4, max_steps: int = 6, end: str = "both"
    ) -> None:
        self.paid, self.length, self.max_steps, self.end = paid, length, max_steps, end

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, Any]:
        super().reset(seed=seed)
        self.draw, self.t = self.np_random.random(), 0
        return self._seen(), {"eaten": 0}

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, Any]:
        self.t += 1
        over, paid = self.t == self.length, list(action) if self.paid == "each" else 2.0 * action[0]
        ends = [over, over] if self.paid == "each" else over
        if self.end != "both":
            ends = [over, False]
        cuts = [False, over] if self.end == "mixed" else False
        return self._seen(), paid, ends, cuts, {"eaten": 2 * self.t}

    def _seen(self) -> Any:
        return (
            np.array([self.draw, self.t], np.float32),
            np.array([self.t], np.float32),
        )


class Endless(Pair):
    """A `Pair` that shows no limit of its own."""

    def __init__(self, **options: Any) -> None:
        super().__init__(length=1_000, **options)
        del self.max_steps


gymnasium.register("Pair-v0", entry_point=Pair)
gymnasium.register("Endless-v0", entry_point=Endless, max_episode_steps=5)
