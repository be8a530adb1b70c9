"""Continuous actions of agents that differ in what they see and do.

Axes: C environment copies, T steps of an episode, N agents, K choices.
"""

from dataclasses import dataclass

import numpy as np

from envs.base import BoolArray, EnvSpec, FloatArray
from envs.probes.common import Actions, Steps, at_least_one, now
from envs.simulated import Arrays, SimulatedEnv, View


def continuous_match(num_envs: int, *, max_steps: int = 8) -> SimulatedEnv:
    """Return two agents that must act out what they see: one number, and two numbers.

    Agent 0 sees u in [-1, 1]^2 and should act u[1]. Agent 1 sees w in [-1, 1]^3 and should act
    (w[2], -w[0]). A step pays minus the mean over agents of the mean squared error over
    dimensions. Optimum 0; always zero -T / 3 (-8/3); random -2 T / 3 (-16/3). The task ends
    after T steps.
    """
    spec = EnvSpec(
        name="probe/continuous_match",
        num_envs=num_envs,
        obs_sizes=(2, 3),
        state_size=5,
        action_kind="continuous",
        action_sizes=(1, 2),
        max_steps=at_least_one("continuous_match", "max_steps", max_steps),
        finite_horizon=True,
    )
    return SimulatedEnv(spec, _Matching(max_steps))


@dataclass(frozen=True)
class _Matching:
    """The functions of `continuous_match`."""

    max_steps: int

    @property
    def num_draws(self) -> int:
        """Five numbers per step, two of agent 0 and three of agent 1."""
        return (self.max_steps + 1) * 5

    def begin(self, draws: FloatArray) -> Arrays:
        """Return the (C, T + 1, 5) numbers in [-1, 1] of new episodes."""
        numbers = (2.0 * draws - 1.0).astype(np.float32)
        return {"numbers": numbers.reshape(-1, self.max_steps + 1, 5)}

    def view(self, arrays: Arrays, steps: Steps) -> View:
        """Return each agent's numbers, agent 0 padded by one zero."""
        numbers = now(arrays["numbers"], steps)
        obs = np.zeros((len(numbers), 2, 3), np.float32)
        obs[:, 0, :2] = numbers[:, :2]
        obs[:, 1] = numbers[:, 2:]
        return View(obs=obs, state=numbers)

    def advance(
        self, arrays: Arrays, steps: Steps, actions: Actions
    ) -> tuple[Arrays, FloatArray, BoolArray]:
        """Return minus the mean squared error, agents weighing the same."""
        numbers = now(arrays["numbers"], steps).astype(np.float64)
        first = (actions[:, 0, 0] - numbers[:, 1]) ** 2
        targets = np.stack([numbers[:, 4], -numbers[:, 2]], axis=1)
        second = ((actions[:, 1] - targets) ** 2).mean(axis=1)
        return arrays, -(first + second) / 2.0, np.zeros(len(numbers), np.bool_)
