"""A task without end, interrupted by a time limit.

Axes: C environment copies, T steps of an episode, N agents, K choices.
"""

from dataclasses import dataclass

import numpy as np

from envs.base import BoolArray, EnvSpec, FloatArray
from envs.probes.common import Actions, Steps, at_least_one, one_hot
from envs.simulated import Arrays, SimulatedEnv, View


def time_limit(
    num_envs: int,
    *,
    max_steps: int = 10,
    finite_horizon: bool = False,
) -> SimulatedEnv:
    """Return one agent that is paid 1 in every step it chooses to stand in state 1, without end.

    Action 1 leads to state 1 and pays 1; action 0 leads to state 0 and pays 0. Optimum T (10)
    per episode; random T / 2 (5). Deterministic. The limit of T steps interrupts, so with
    reward mode "dense" and discount gamma the value of either state is 1 / (1 - gamma): 100 at
    .99. With `finite_horizon` the limit ends the task and the value of the start is the sum of
    gamma^t over t < T: 9.56 at .99.
    """
    spec = EnvSpec(
        name="probe/time_limit",
        num_envs=num_envs,
        obs_sizes=(2,),
        state_size=2,
        action_kind="discrete",
        action_sizes=(2,),
        max_steps=at_least_one("time_limit", "max_steps", max_steps),
        finite_horizon=finite_horizon,
    )
    return SimulatedEnv(spec, _Standing())


@dataclass(frozen=True)
class _Standing:
    """The functions of `time_limit`."""

    num_draws: int = 0

    def begin(self, draws: FloatArray) -> Arrays:
        """Return every copy in state 0."""
        return {"place": np.zeros(len(draws), np.int64)}

    def view(self, arrays: Arrays, steps: Steps) -> View:
        """Return the state as one-hot; the agent sees it all."""
        state = one_hot(arrays["place"], 2)
        return View(obs=state[:, None].copy(), state=state)

    def advance(
        self, arrays: Arrays, steps: Steps, actions: Actions
    ) -> tuple[Arrays, FloatArray, BoolArray]:
        """Return the chosen state and its pay."""
        place = actions[:, 0].astype(np.int64)
        return {"place": place}, place.astype(np.float64), np.zeros(len(place), np.bool_)
