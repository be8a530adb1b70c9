"""Actions that promise the most are illegal.

Axes: C environment copies, T steps of an episode, N agents, K choices.
"""

from dataclasses import dataclass

import numpy as np

from envs.base import BoolArray, FloatArray
from envs.probes.common import Actions, Steps, discrete_spec, now
from envs.simulated import Arrays, SimulatedEnv, View


def masked(num_envs: int, *, max_steps: int = 8) -> SimulatedEnv:
    """Return two agents of which each sees the pay of five actions, two of them illegal.

    Every step and agent one legal action pays 1, two pay 0 and the illegal ones promise 2, but
    raise `EnvError`. The team is paid the mean. Optimum T (8); random T / 3 (8/3). The task
    ends after T steps.
    """
    spec = discrete_spec("masked", num_envs, max_steps, num_agents=2, size=5, masks_actions=True)
    return SimulatedEnv(spec, _Masked(max_steps))


@dataclass(frozen=True)
class _Masked:
    """The functions of `masked`."""

    max_steps: int

    @property
    def num_draws(self) -> int:
        """A number per step, agent and action, whose order gives the pay."""
        return (self.max_steps + 1) * 2 * 5

    def begin(self, draws: FloatArray) -> Arrays:
        """Return the (C, T + 1, N, K) pay of new episodes: one 1, two 0, two (illegal) 2."""
        ranks = draws.reshape(-1, self.max_steps + 1, 2, 5).argsort(axis=3)
        return {"pay": np.array([1.0, 0.0, 0.0, 2.0, 2.0], np.float32)[ranks]}

    def view(self, arrays: Arrays, steps: Steps) -> View:
        """Return the promised pay of every action, and which are legal."""
        pay = now(arrays["pay"], steps)
        return View(obs=pay, state=pay.reshape(len(pay), -1).copy(), action_mask=pay < 2.0)

    def advance(
        self, arrays: Arrays, steps: Steps, actions: Actions
    ) -> tuple[Arrays, FloatArray, BoolArray]:
        """Return the mean pay of the chosen actions."""
        pay = now(arrays["pay"], steps)
        chosen = np.take_along_axis(pay, actions[:, :, None], axis=2)[:, :, 0]
        return arrays, chosen.mean(axis=1, dtype=np.float64), np.zeros(len(pay), np.bool_)
