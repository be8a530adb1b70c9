"""`particles/nav_6` that also tells how much its agents push, for a second preference.

Axes are those of `envs.base`.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from envs import EnvSpec, EnvStep, Fact, Frame
from envs.particles import nav

EFFORT = Fact(
    name="effort", meaning="share of steps in which an agent pushes", higher_is_better=False
)


class PushingNav:
    """The environment with one fact more, `EFFORT`, of the steps and agents of an episode so far.

    It is a mean over steps, as a learned reward is a sum of them.
    """

    def __init__(self, num_envs: int, *, num_agents: int = 6) -> None:
        self.inner = nav(num_envs, num_agents=num_agents)
        spec = self.inner.spec
        self.spec: EnvSpec = replace(
            spec, name="benchmarks/pushing_nav", facts=(*spec.facts, EFFORT)
        )
        self._begin()

    def _begin(self) -> None:
        self._pushes, self._steps = np.zeros((2, self.spec.num_envs))

    def reset(self, seed: int) -> EnvStep:
        """Start a new episode in every environment."""
        self._begin()
        return self._with_effort(self.inner.reset(seed))

    def step(self, actions: npt.NDArray[Any]) -> EnvStep:
        """Return the inner environment's step and the effort so far."""
        self._pushes += (np.asarray(actions) != 0).mean(axis=1)
        self._steps += 1
        told = self._with_effort(self.inner.step(actions))
        ended = told.terminated | told.truncated
        self._pushes[ended] = self._steps[ended] = 0.0
        return told

    def _with_effort(self, step: EnvStep) -> EnvStep:
        effort = (self._pushes / np.maximum(self._steps, 1.0)).astype(np.float32)
        assert step.facts is not None
        return replace(step, facts=np.concatenate([step.facts, effort[:, None]], axis=1))

    def frame(self, index: int) -> Frame | None:
        """Return what an environment looks like now."""
        return self.inner.frame(index)

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to continue exactly."""
        counts = {"pushes": self._pushes.copy(), "steps": self._steps.copy()}
        return {"inner": self.inner.state_dict(), **counts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()` of an environment made with the same options."""
        self.inner.load_state_dict(state["inner"])
        self._pushes, self._steps = state["pushes"].copy(), state["steps"].copy()
