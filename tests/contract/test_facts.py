"""What environments tell about their episodes agrees with what happened in them.

Axes: E environments, N agents, F facts.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from envs import EnvStep, check_env, make_env
from envs.base import HasHiddenRewards, VecEnv
from envs.mujoco.mamujoco import MaMuJoCo


def played(env: VecEnv, steps: int, seed: int = 0) -> list[tuple[EnvStep, npt.NDArray[Any]]]:
    """Return copies of the steps of a random policy, with the dense rewards."""
    draw, seen = np.random.default_rng(seed), []
    spec = env.spec
    env.reset(seed=seed)
    for _ in range(steps):
        if spec.action_kind == "discrete":
            actions: Any = draw.integers(
                0, min(spec.action_sizes), (spec.num_envs, spec.num_agents)
            )
        else:
            shape = (spec.num_envs, spec.num_agents, spec.action_size)
            actions = draw.uniform(-1, 1, shape).astype(np.float32)
        step = env.step(actions)
        copied = {k: None if v is None else np.array(v) for k, v in vars(step).items()}
        dense = env.hidden_rewards() if isinstance(env, HasHiddenRewards) else step.rewards
        seen.append((EnvStep(**copied), np.array(dense)))
    return seen


def column(env: VecEnv, name: str) -> int:
    return [fact.name for fact in env.spec.facts].index(name)


def facts_of(env: VecEnv, seen: list[tuple[EnvStep, Any]], name: str) -> npt.NDArray[Any]:
    """Return one fact over time, (T, E)."""
    index = column(env, name)
    return np.stack([step.facts[:, index] for step, _ in seen if step.facts is not None])


def test_distance_and_control_cost_make_up_the_cheetah_s_return() -> None:
    env = MaMuJoCo(3, "HalfCheetah", "2x3", max_steps=20)
    seen = played(env, 20)
    # Gymnasium pays speed (the distance over .05 s) less the control cost in every step.
    returns = np.sum([hidden for _, hidden in seen], axis=0)
    distance, cost = facts_of(env, seen, "distance"), facts_of(env, seen, "control_cost")
    np.testing.assert_allclose(distance[-1] / 0.05 - cost[-1], returns, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(facts_of(env, seen, "time")[-1], 20 * 0.05, rtol=1e-6)
    assert (np.diff(cost, axis=0) > 0).all()


def test_facts_begin_anew_with_the_episode() -> None:
    env = MaMuJoCo(2, "HalfCheetah", "2x3", max_steps=5)
    time = facts_of(env, played(env, 12), "time")
    expected = 0.05 * np.array([1, 2, 3, 4, 5] * 3)[:12]
    np.testing.assert_allclose(time, np.stack([expected, expected], axis=1), rtol=1e-6)


def test_who_fell_is_told() -> None:
    env = MaMuJoCo(4, "Hopper", "3x1")
    seen = played(env, 100)
    fell = facts_of(env, seen, "fell")
    assert fell.any()
    np.testing.assert_array_equal(fell, np.stack([step.terminated for step, _ in seen]))


def test_the_goal_of_the_reacher_is_told() -> None:
    env = MaMuJoCo(2, "Reacher", "2x1", max_steps=30)
    seen = played(env, 10)
    cost, goal = facts_of(env, seen, "control_cost"), facts_of(env, seen, "goal_distance")
    steps = np.diff(cost, axis=0, prepend=0.0)
    hidden = np.stack([hidden for _, hidden in seen])
    np.testing.assert_allclose(-goal - steps, hidden, rtol=1e-4, atol=1e-5)


def test_the_height_of_the_humanoid_is_told() -> None:
    env = MaMuJoCo(1, "HumanoidStandup", "9|8")
    height = facts_of(env, played(env, 3), "height")
    np.testing.assert_allclose(height[-1], env.bodies.qpos[:, 2], rtol=1e-6)


def test_a_fleet_tells_means_and_its_dead_stand_still() -> None:
    env = make_env("fleet/hopper_3", 2, max_steps=200)
    seen = played(env, 60)
    fell, time = facts_of(env, seen, "fell"), facts_of(env, seen, "time")
    alive = np.stack([step.alive for step, _ in seen if step.alive is not None])
    over = np.stack([step.terminated for step, _ in seen])
    np.testing.assert_allclose(fell[~over], 1.0 - alive.mean(axis=2)[~over], rtol=1e-6)
    # The time of a robot stops with its fall: the mean never grows by more than the living do.
    assert fell.any()
    grown = np.diff(time, axis=0)
    before = alive[:-1].mean(axis=2)
    inside = ~over[:-1]
    np.testing.assert_allclose(grown[inside], 0.008 * before[inside], rtol=1e-3)


def test_particles_tell_where_they_ended() -> None:
    env = make_env("particles/nav_3", 4)
    seen = played(env, 25)
    last, hidden = seen[-1]
    assert last.facts is not None
    distances = np.linalg.norm(last.final_obs[:, :, 4:6], axis=2)
    expected = [distances.mean(axis=1), distances.max(axis=1), (distances <= 0.1).sum(axis=1)]
    np.testing.assert_allclose(last.facts, np.stack(expected, axis=1), rtol=1e-5)
    np.testing.assert_allclose(last.facts[:, 0], -hidden, rtol=1e-5)


def test_spread_tells_what_is_covered_and_who_touches() -> None:
    env = make_env("particles/spread_3", 8)
    for step, hidden in played(env, 25):
        assert step.facts is not None
        mean, _, touching = step.facts.T
        # Half of minus the sum of the distances, half of minus the mean number of touches.
        np.testing.assert_allclose(-0.5 * 3 * mean - 0.5 * 2 * touching / 3, hidden, rtol=1e-4)


@pytest.mark.parametrize(
    "name", ["mamujoco/hopper_3x1", "mamujoco/reacher_2x1", "fleet/hopper_2", "particles/spread_3"]
)
def test_facts_keep_the_contract(name: str) -> None:
    assert [p for p in check_env(make_env(name, 3), steps=60) if not p.startswith("warning")] == []
