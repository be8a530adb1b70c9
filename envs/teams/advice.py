"""Whether worker processes pay, by a short measurement; in a worker, whose hanging is noticed.

Axes: N agents, A actions.
"""

import os
import time
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from envs.base import EnvSpec
from envs.sampling import random_actions
from envs.teams.blocks import TeamMaker, new_episodes
from envs.teams.team import TeamView
from envs.teams.workers import Workers

_ROUND_TRIP = 0.4e-3
"""Seconds that handing a step to two workers costs; 0.2 to 0.4 ms were measured."""


class _TimedTeam:
    """A team that is paid the seconds its steps take."""

    def __init__(self, make_team: TeamMaker) -> None:
        self._team = make_team()
        self.spec = self._team.spec
        self.reset, self.close = self._team.reset, self._team.close

    def step(self, actions: npt.NDArray[Any], view: TeamView) -> tuple[float, bool, bool]:
        """Apply the actions; return the seconds that this took, and how the episode ended."""
        before = time.perf_counter()
        _, terminated, truncated = self._team.step(actions, view)
        return time.perf_counter() - before, terminated, truncated


def advised_workers(make_team: TeamMaker, spec: EnvSpec, timeout: float) -> int:
    """Return as many workers as cores and copies allow, or 0 where they would not pay.

    `timeout` is how many seconds one call may take while this is measured.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    workers = min(cores or 1, spec.num_envs)
    if workers < 2:
        return 0
    saved = spec.num_envs * seconds_per_step(make_team, spec, timeout) * (1.0 - 1.0 / workers)
    return workers if saved > 2 * _ROUND_TRIP else 0


def seconds_per_step(
    make_team: TeamMaker,
    spec: EnvSpec,
    timeout: float,
    budget: float = 0.1,
    max_steps: int = 100,
) -> float:
    """Return the median seconds that one copy needs for a step under random actions."""
    spec = replace(spec, num_envs=1)
    worker = Workers(partial(_TimedTeam, make_team), spec, 1, timeout)
    try:
        records = worker.start(new_episodes(np.zeros(1, np.uint64)))
        rng = np.random.default_rng(0)
        seconds: list[float] = []
        while len(seconds) < max_steps and sum(seconds) < budget:
            records = worker.step(random_actions(spec, rng, records["action_mask"]))
            seconds.append(float(records["rewards"][0]))
    finally:
        worker.close()
    return float(np.median(seconds))
