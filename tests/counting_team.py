"""A team whose observations say where they come from, and that misbehaves when asked to."""

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from envs import EnvSpec, Fact
from envs.adapters.team import TeamView


class CountingTeam:
    """Three agents that see (draw, t, own index), cut to their own size; the state is (draw, t).

    The draw is the episode's first random number. Agent i leaves after step 2 + i. The reward is
    the sum of the actions plus a random number; the task ends when all have left, which `max_steps`
    may forestall. Choosing action 3 in step `fault_at` raises, hangs or exits. When closed, it
    leaves a file in the folder `farewell`.
    """

    def __init__(
        self,
        *,
        max_steps: int = 50,
        finite_horizon: bool = False,
        fault: str = "",
        fault_at: int = 1,
        sleep: float = 0.0,
        unseeded: bool = False,
        farewell: Path | None = None,
    ) -> None:
        self.spec = EnvSpec(
            name="counting",
            num_envs=1,
            obs_sizes=(3, 2, 3),
            state_size=2,
            action_kind="discrete",
            action_sizes=(4, 4, 2),
            max_steps=max_steps,
            finite_horizon=finite_horizon,
            masks_actions=True,
            agents_die=True,
            facts=(Fact(name="time", meaning="steps taken", unit="steps"),),
        )
        self.fault, self.fault_at, self.sleep, self.unseeded = (
            fault,
            fault_at,
            sleep,
            unseeded,
        )
        self.farewell = farewell
        self.begun = self.closed = False

    def reset(self, seed: int, view: TeamView) -> None:
        self.rng = np.random.default_rng(None if self.unseeded else seed)
        self.draw, self.t, self.begun = self.rng.random(), 0, True
        self._show(view)

    def step(self, actions: npt.NDArray[Any], view: TeamView) -> tuple[float, bool, bool]:
        if self.fault and self.t == self.fault_at and actions[0] == 3:
            self._fail()
        if self.sleep:
            time.sleep(self.sleep)
        self.t += 1
        self._show(view)
        return float(actions.sum()) + self.rng.random(), self.t >= 4, False

    def close(self) -> None:
        self.closed = True
        if self.farewell is not None and self.begun:
            (self.farewell / str(os.getpid())).touch()

    def _fail(self) -> None:
        if self.fault == "raise":
            raise KeyError("the key of the matter")
        if self.fault == "exit":
            os._exit(7)
        while True:
            time.sleep(0.01)

    def _show(self, view: TeamView) -> None:
        view.obs[:, 0], view.obs[:, 1] = self.draw, self.t
        view.obs[0, 2], view.obs[2, 2] = 0, 2
        view.state[:] = self.draw, self.t
        view.alive[:] = self.t < 2 + np.arange(3)
        view.obs[~view.alive] = 0
        view.action_mask[0, 1] = self.t != 1
        view.facts[0] = self.t
