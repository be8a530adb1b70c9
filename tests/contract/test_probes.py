"""Every probe and particle task keeps the environment contract."""

import numpy as np
import pytest

from envs import HasHiddenRewards, VecEnv, check_env, env_names, make_env
from envs.rng import random_actions

NAMES = [name for name in env_names() if name.startswith("probe/")]
NAMES += ["particles/nav_6", "particles/nav_1", "particles/spread_3"]


@pytest.mark.parametrize("reward_mode", ["episodic", "dense"])
@pytest.mark.parametrize("num_envs", [1, 7])
@pytest.mark.parametrize("name", NAMES)
def test_contract(name: str, num_envs: int, reward_mode: str) -> None:
    problems = check_env(make_env(name, num_envs, reward_mode=reward_mode), steps=60)
    # time_limit is deterministic by design, which the checker can only warn of.
    expected = 1 if name == "probe/time_limit" else 0
    assert len(problems) == expected, problems
    assert all(problem.startswith("warning: ") for problem in problems)


@pytest.mark.parametrize("name", NAMES)
def test_protocols_and_names(name: str) -> None:
    env = make_env(name, 2)
    assert isinstance(env, VecEnv)
    assert isinstance(env, HasHiddenRewards)
    assert env.spec.name == name


@pytest.mark.parametrize("name", NAMES)
def test_environments_do_not_depend_on_their_number(name: str) -> None:
    few, many = make_env(name, 2), make_env(name, 5)
    rng = np.random.default_rng(0)
    step, wide = few.reset(9), many.reset(9)
    for _ in range(30):
        np.testing.assert_array_equal(step.obs, wide.obs[:2])
        actions = random_actions(many.spec, rng, wide.action_mask)
        step, wide = few.step(actions[:2]), many.step(actions)
        np.testing.assert_array_equal(step.rewards, wide.rewards[:2])


def test_state_continues_in_another_environment() -> None:
    env, other = make_env("probe/dying", 4), make_env("probe/dying", 4)
    rng = np.random.default_rng(0)
    env.reset(1)
    for _ in range(13):
        env.step(random_actions(env.spec, rng, None))
    other.load_state_dict(env.state_dict())
    for _ in range(20):
        actions = random_actions(env.spec, rng, None)
        ours, theirs = env.step(actions), other.step(actions)
        np.testing.assert_array_equal(ours.obs, theirs.obs)
        np.testing.assert_array_equal(ours.rewards, theirs.rewards)
