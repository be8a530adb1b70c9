"""What is found out about a third-party task by playing it shortly, before it is trained in.

Whether worker processes pay, and whether the task repeats under its seed. Axes are those of
`envs.base`.
"""

import os
import random
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from envs.adapters.team import Block, Records, TeamMaker, TeamView, new_episodes
from envs.adapters.workers import Workers
from envs.base import EnvError, EnvSpec
from envs.rng import env_seeds, random_actions

_ROUND_TRIP = 0.4e-3
"""Seconds that handing a step to two workers costs; 0.2 to 0.4 ms were measured."""


def advised_workers(make_team: TeamMaker, spec: EnvSpec, timeout: float) -> int:
    """Return as many workers as cores and environments allow, or 0 where they would not pay.

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
    """Return the median seconds that one environment needs for a step under random actions."""
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


def repeats_itself(
    make_team: TeamMaker,
    spec: EnvSpec,
    timeout: float,
    where: type[Workers] | type[Block],
    budget: float = 2.0,
    max_steps: int = 47,
) -> bool:
    """Return whether the first steps of one environment are the same again under their seed.

    They are fewer than `max_steps` only where those take more than `budget` seconds, so that the
    answer does not depend on the machine; a prime number, since some environments do something
    every so many steps, whatever `reset` was told. The global generators, from which some
    environments draw, are left as they were. True where playing fails: training will say so.
    """
    with _generators_kept():
        one = replace(spec, num_envs=1)
        try:
            runner = (
                Workers(make_team, one, 1, timeout)
                if where is Workers
                else Block(make_team, one, range(1))
            )
        except EnvError:
            return True
        try:
            return _plays_twice(runner, one, budget, max_steps)
        finally:
            runner.close()


def _plays_twice(runner: Workers | Block, spec: EnvSpec, budget: float, max_steps: int) -> bool:
    """Return whether an episode's first steps are the same when they are played again."""
    plan = new_episodes(env_seeds(0, 1))
    steps: list[tuple[npt.NDArray[Any], Records]] = []
    try:
        first = records = runner.start(plan).copy()
        rng, began = np.random.default_rng(0), time.perf_counter()
        while len(steps) < max_steps and time.perf_counter() - began < budget:
            actions = random_actions(spec, rng, records["action_mask"])
            records = runner.step(actions).copy()
            steps.append((actions, records))
    except EnvError:
        return True
    try:
        return _same(runner.start(plan), first) and all(
            _same(runner.step(actions), records) for actions, records in steps
        )
    except EnvError:
        return False


@contextmanager
def _generators_kept() -> Iterator[None]:
    """Leave the global random numbers of Python, NumPy and PyTorch as they were."""
    torch = sys.modules.get("torch")
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - others draw from it
    torch_state = None if torch is None else torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002 - as above
        if torch is not None:
            torch.set_rng_state(torch_state)


def _same(one: Records, other: Records) -> bool:
    """Return whether two records hold the same numbers."""
    names = one.dtype.names or ()
    return all(np.array_equal(one[name], other[name], equal_nan=True) for name in names)
