"""Who is alive at the end of an interrupted episode: who would be if it had gone on.

Axes: E environments, N agents.
"""

from functools import partial
from typing import Any

import numpy as np
import pytest

from envs import EnvStep, VecEnv, make_env
from envs.adapters.team_env import TeamEnv
from envs.rng import random_actions
from tests.counting_team import CountingTeam

NUM_ENVS = 6


def fleet(max_steps: int) -> VecEnv:
    return make_env("fleet/hopper_2", NUM_ENVS, max_steps=max_steps)


def counting(max_steps: int, workers: int) -> VecEnv:
    return TeamEnv(partial(CountingTeam, max_steps=max_steps), NUM_ENVS, workers=workers)


def battles(max_steps: int) -> VecEnv:
    pytest.importorskip("jaxmarl.registration", reason="needs the extra smax")
    options: dict[str, Any] = {"finite_horizon": False, "max_steps": max_steps}
    return make_env("smax/3m", NUM_ENVS, **options)


def first_death(env: VecEnv, limit: int) -> tuple[int, EnvStep]:
    """Return the number of the first step in which an agent dies while the others live on."""
    rng = np.random.default_rng(0)
    step = env.reset(3)
    for t in range(1, limit):
        step = env.step(random_actions(env.spec, rng, step.action_mask))
        assert step.alive is not None
        assert not (step.terminated | step.truncated).any()
        if not step.alive.all():
            return t, step
    raise AssertionError(f"nobody has died within {limit} steps")


@pytest.mark.parametrize(
    ("make", "limit"),
    [
        (fleet, 100),
        (partial(counting, workers=0), 50),
        (partial(counting, workers=2), 50),
        (battles, 100),
    ],
    ids=["fleet", "team", "workers", "smax"],
)
def test_final_alive_tells_who_died_in_the_last_step(make: Any, limit: int) -> None:
    time, expected = first_death(make(limit), limit)
    env, rng = make(time), np.random.default_rng(0)
    step = env.reset(3)
    np.testing.assert_array_equal(step.final_alive, step.alive)
    for _ in range(time):
        step = env.step(random_actions(env.spec, rng, step.action_mask))
    assert step.truncated.all()
    assert expected.final_alive is not None
    np.testing.assert_array_equal(step.final_alive, expected.final_alive)
    np.testing.assert_array_equal(expected.final_alive, expected.alive)
    assert step.alive.all()  # they belong to the next episode
