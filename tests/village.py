"""A small PettingZoo world in which agents differ, come and go."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, Space
from pettingzoo import ParallelEnv

AGENTS = ["elder", "child", "guest"]


class Village(ParallelEnv):  # type: ignore[type-arg]
    """The guest comes after step 1, the elder is terminated in step 3, the child stays.

    In step 4 everything ends: "cut" truncates whoever is left, "done" terminates them, "quiet"
    only empties the list of agents; "never" goes on. The elder sees (draw, t), the child t modulo
    4, the guest two bits of t. `masks` "dict" or "info": nobody may choose the last action while
    t is odd. Without `rewards`, everybody is paid the number of its action.
    """

    metadata = {"name": "village"}  # noqa: RUF012  # PettingZoo's own spelling
    possible_agents = AGENTS

    def __init__(
        self,
        end: str = "cut",
        masks: str = "",
        rewards: tuple[float, ...] = (1.0, 1.0, 1.0),
        own_state: bool = True,
        fault: str = "",
    ) -> None:
        self.end, self.masks, self.rewards, self.fault = end, masks, rewards, fault
        self.has_state = own_state
        assert len(rewards) in (0, 3)
        self.received: list[Mapping[str, Any]] = []

    def observation_space(self, agent: str) -> Space[Any]:
        spaces: dict[str, Space[Any]] = {
            "elder": Box(-9, 9, (2,), np.float64),
            "child": Discrete(4, start=-1),
            "guest": MultiBinary(2),
        }
        if self.masks != "dict":
            return spaces[agent]
        return Dict(
            {"observation": spaces[agent], "action_mask": MultiBinary(self._choices(agent))}
        )

    def action_space(self, agent: str) -> Space[Any]:
        return Discrete(self._choices(agent), start=10 * AGENTS.index(agent))

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        self.draw, self.t = np.random.default_rng(seed).random(), 0
        self.agents = ["elder", "child"]
        return self._seen(self.agents), self._infos(self.agents)

    def step(self, actions: Mapping[str, Any]) -> tuple[Any, Any, Any, Any, Any]:
        self.received.append(dict(actions))
        assert set(actions) == set(self.agents)
        assert all(self.action_space(agent).contains(a) for agent, a in actions.items())
        self.t += 1
        acting = list(self.agents)
        if self.t == 1:
            self.agents.append("guest")
        over = self.t == 4 and self.end != "never"
        flags = dict.fromkeys(acting, False)
        terminated = {
            a: (over and self.end == "done") or (a == "elder" and self.t == 3) for a in acting
        }
        truncated = dict.fromkeys(flags, over and self.end == "cut")
        here = list(dict.fromkeys(acting + self.agents))
        if over:
            self.agents = []
        if self.t == 3:
            self.agents.remove("elder")
        rewards = {a: self.rewards[AGENTS.index(a)] if self.rewards else actions[a] for a in acting}
        if self.fault == "stranger":
            self.agents.append("stranger")
        return self._seen(here), rewards, terminated, truncated, self._infos(here)

    def state(self) -> Any:
        if not self.has_state:
            raise NotImplementedError
        return np.array([[self.draw, self.t]])

    def close(self) -> None: ...

    def _choices(self, agent: str) -> int:
        return {"elder": 3, "child": 2, "guest": 3}[agent]

    def _mask(self, agent: str) -> Any:
        mask = np.ones(self._choices(agent), np.int8)
        mask[-1] = self.t % 2 == 0
        return mask

    def _seen(self, agents: list[str]) -> dict[str, Any]:
        if self.fault == "silent":
            return {}
        seen = {
            "elder": np.array([self.draw, self.t][: 1 if self.fault == "shape" else 2]),
            "child": self.t % 4 - 1 + (9 if self.fault == "range" else 0),
            "guest": np.array([self.t & 1, self.t >> 1 & 1], np.int8),
        }
        if self.fault == "outside" and self.t == 2:
            seen["elder"] = np.array([self.draw, 1e6])
        if self.masks == "dict":
            return {a: {"observation": seen[a], "action_mask": self._mask(a)} for a in agents}
        return {agent: seen[agent] for agent in agents}

    def _infos(self, agents: list[str]) -> dict[str, Any]:
        infos: dict[str, Any] = {agent: {"age": self.t + AGENTS.index(agent)} for agent in agents}
        if self.masks == "info":
            for agent in agents:
                infos[agent]["action_mask"] = self._mask(agent)
        return infos
