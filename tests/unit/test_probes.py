"""Probe and particle tasks pay what their docstrings promise.

Axes: E environments, N agents, 2 plane coordinates.
"""

from collections.abc import Callable
from itertools import permutations
from typing import Any

import numpy as np
import pytest

from envs import EnvError, EnvStep, make_env
from envs.particles import FORCES, contact_forces, moved
from envs.rng import random_actions
from envs.sparse import SparseRewards, unwrapped

Policy = Callable[[EnvStep], np.ndarray]


def episode_returns(env: Any, policy: Policy, seed: int = 0) -> np.ndarray:
    """Return the (E,) return of the first episode of every copy."""
    step = env.reset(seed)
    totals = np.zeros(env.spec.num_envs)
    running = np.ones(env.spec.num_envs, bool)
    for _ in range(env.spec.max_steps):
        step = env.step(policy(step))
        totals += step.rewards * running
        running &= ~(step.terminated | step.truncated)
    assert not running.any()
    return totals


def random_policy(env: Any, seed: int = 0) -> Policy:
    rng = np.random.default_rng(seed)
    return lambda step: random_actions(env.spec, rng, step.action_mask)


def name_the_cue(step: EnvStep) -> np.ndarray:
    return step.obs.argmax(axis=2)


def best_legal(step: EnvStep) -> np.ndarray:
    return np.where(step.action_mask, step.obs, -1.0).argmax(axis=2)


def match(step: EnvStep) -> np.ndarray:
    actions = np.zeros((len(step.obs), 2, 2), np.float32)
    actions[:, 0, 0] = step.obs[:, 0, 1]
    actions[:, 1, 0] = step.obs[:, 1, 2]
    actions[:, 1, 1] = -step.obs[:, 1, 0]
    return actions


def take_and_turn(step: EnvStep) -> np.ndarray:
    return step.obs[:, :, :2].argmax(axis=2)  # 0 at the door, where no key is shown


class Remember:
    """Names the cue of the first step for ever."""

    def __call__(self, step: EnvStep) -> np.ndarray:
        cues = step.obs[:, :, :2]
        if cues.any():
            self.cues = cues.argmax(axis=2)
        return self.cues


# Optimum and random return by hand, T = 8 steps:
# coordination: 8; 8 * (1/3)^2 = .889.  local_credit: 8; 8 / 2 = 4.
# masked: 8; one of three legal actions pays: 8 / 3 = 2.667.
# continuous_match: 0; E (a - t)^2 = 2/3 for two independent uniforms on [-1, 1]: -16/3.
# dying: mean of 1..8 = 4.5; half of it.  time_limit: 10; 5.  recall: 1; 1 / 2.
@pytest.mark.parametrize(
    ("name", "policy", "optimum", "random"),
    [
        ("coordination", name_the_cue, 8.0, 8 / 9),
        ("local_credit", name_the_cue, 8.0, 4.0),
        ("masked", best_legal, 8.0, 8 / 3),
        ("continuous_match", match, 0.0, -16 / 3),
        ("dying", name_the_cue, 4.5, 2.25),
        ("recall", Remember(), 1.0, 0.5),
        ("keys", take_and_turn, 1.0, 0.25),
        ("time_limit", lambda step: np.ones((len(step.obs), 1), int), 10.0, 5.0),
    ],
)
@pytest.mark.parametrize("reward_mode", ["episodic", "dense"])
def test_probe_pays_the_stated_returns(
    name: str, policy: Policy, optimum: float, random: float, reward_mode: str
) -> None:
    env = make_env(f"probe/{name}", 4_000, reward_mode=reward_mode)
    # The largest standard deviation of a return is below 1.7, so .1 is about four standard errors.
    best = episode_returns(env, policy)
    assert best.mean() == pytest.approx(optimum, abs=0.1)
    if name != "dying":
        np.testing.assert_allclose(best, optimum, atol=1e-5)
    drawn = episode_returns(env, random_policy(env))
    assert drawn.mean() == pytest.approx(random, abs=0.1)


def test_dying_pays_the_mean_lifetime_and_ends_with_the_last_death() -> None:
    env = make_env("probe/dying", 500, reward_mode="dense")
    step = env.reset(3)
    running = np.ones(500, bool)
    lifetimes = np.zeros((500, 3))
    totals = np.zeros(500)
    lengths = np.zeros(500)
    while running.any():
        assert step.alive is not None
        lifetimes += step.alive * running[:, None]
        actions = np.where(step.alive, name_the_cue(step), 1)  # whatever the dead do
        step = env.step(actions)
        totals += step.rewards * running
        lengths += running
        running &= ~step.terminated
    np.testing.assert_allclose(totals, lifetimes.mean(axis=1), atol=1e-5)
    np.testing.assert_array_equal(lengths, lifetimes.max(axis=1))
    assert set(np.unique(lifetimes)) == set(range(1, 9))


def test_recall_shows_the_cue_once_and_the_light_after_the_answer() -> None:
    env = make_env("probe/recall", 50, num_cues=3, max_steps=4)
    step = env.reset(0)
    cues = step.obs[:, :, :3].argmax(axis=2)
    assert (step.obs[:, :, :3].sum(axis=2) == 1.0).all()
    assert not step.obs[:, :, 3:].any()
    right = cues.copy()
    right[:, 1] = (cues[:, 1] + 1) % 3  # agent 1 is wrong
    shown = []
    for actions in (cues, cues, right, cues):
        step = env.step(actions)
        shown.append(step.final_obs)
    assert not shown[0].any()
    assert (shown[1] == [0.0, 0.0, 0.0, 1.0, 0.0]).all()  # the question
    assert (shown[2][:, 0] == [0.0, 0.0, 0.0, 0.0, 1.0]).all()  # the light
    assert not shown[2][:, 1].any()
    assert (step.rewards == 0.5).all()
    assert step.terminated.all()
    with pytest.raises(EnvError, match="max_steps is 2; give at least 3"):
        make_env("probe/recall", 1, max_steps=2)


def test_recall_without_lights_shows_nobody_who_was_right() -> None:
    env = make_env("probe/recall", 50, max_steps=3, lights=False)
    cues = env.reset(0).obs[:, :, :2].argmax(axis=2)
    steps = [env.step(cues) for _ in range(3)]
    assert not steps[1].obs.any()
    assert (steps[2].rewards == 1.0).all()


def test_time_limit_truncates_or_terminates_as_asked() -> None:
    for finite_horizon in (False, True):
        env = make_env("probe/time_limit", 2, max_steps=3, finite_horizon=finite_horizon)
        env.reset(0)
        ones = np.ones((2, 1), int)
        assert not any(env.step(ones).truncated.any() for _ in range(2))
        step = env.step(ones)
        assert step.terminated.all() == finite_horizon
        assert step.truncated.all() != finite_horizon
        # The old episode ended in state 1, the next begins in state 0.
        np.testing.assert_array_equal(step.final_obs, [[[0, 1]]] * 2)
        np.testing.assert_array_equal(step.obs, [[[1, 0]]] * 2)


def test_episodic_pays_the_sum_of_the_hidden_rewards_at_the_end() -> None:
    env = make_env("particles/nav_2", 3)
    assert isinstance(env, SparseRewards)
    env.reset(0)
    policy = random_policy(env)
    total = np.zeros(3)
    for t in range(25):
        step = env.step(random_actions(env.spec, np.random.default_rng(t), None))
        total += env.hidden_rewards()
        assert t == 24 or not step.rewards.any()
    np.testing.assert_allclose(step.rewards, total, rtol=1e-5)
    assert step.terminated.all()
    assert not env.step(policy(step)).rewards.any()


def test_masked_and_out_of_range_actions_are_refused() -> None:
    env = make_env("probe/masked", 2)
    step = env.reset(0)
    assert step.action_mask is not None
    with pytest.raises(EnvError, match="copy 0, agent 0 is illegal"):
        env.step(step.action_mask.argmin(axis=2))
    with pytest.raises(EnvError, match="illegal"):
        make_and_step("particles/nav_2", np.full((1, 2), 5))
    with pytest.raises(EnvError, match="integer actions"):
        make_and_step("particles/nav_2", np.zeros((1, 2)))
    with pytest.raises(EnvError, match="illegal"):
        make_and_step("probe/continuous_match", np.full((1, 2, 2), np.nan))


def make_and_step(name: str, actions: np.ndarray) -> None:
    env = make_env(name, 1)
    env.reset(0)
    env.step(actions)


def test_step_before_reset_and_wrong_options_say_what_to_do() -> None:
    with pytest.raises(EnvError, match="call reset"):
        make_env("probe/masked", 1).step(np.zeros((1, 2), int))
    with pytest.raises(EnvError, match="num_envs is 0"):
        make_env("probe/masked", 0)


def test_point_mass_moves_as_computed_by_hand() -> None:
    # Velocity 1 * .75 + 5 * .1 = 1.25; position 2 + 1.25 * .1 = 2.125.
    positions, velocities = moved(
        np.array([[[2.0, 0.0]]]), np.array([[[1.0, 0.0]]]), FORCES[np.array([[1]])]
    )
    np.testing.assert_allclose(velocities, [[[1.25, 0.0]]])
    np.testing.assert_allclose(positions, [[[2.125, 0.0]]])


def test_nav_pays_minus_the_mean_distance() -> None:
    env = unwrapped(make_env("particles/nav_2", 1))
    env.reset(0)
    state = env.state_dict()
    state["arrays"] = {
        "positions": np.zeros((1, 2, 2)),
        "velocities": np.zeros((1, 2, 2)),
        "landmarks": np.array([[[3.0, 4.0], [1.05, 0.0]]]),
    }
    env.load_state_dict(state)
    # Agent 0 stays: distance 5. Agent 1 is pushed by .5 * .1 = .05 along x: distance 1.
    step = env.step(np.array([[0, 1]]))
    np.testing.assert_allclose(step.rewards, [-3.0], rtol=1e-6)
    np.testing.assert_allclose(step.obs[0, 1], [0.5, 0, 0.05, 0, 1, 0], atol=1e-6)


def test_spread_pays_coverage_and_touching() -> None:
    env = unwrapped(make_env("particles/spread_3", 1))
    env.reset(0)
    state = env.state_dict()
    state["arrays"] = {
        "positions": np.array([[[0.0, 0.0], [0.4, 0.0], [2.0, 0.0]]]),
        "velocities": np.zeros((1, 3, 2)),
        "landmarks": np.array([[[0.0, 1.0], [0.0, -1.0], [2.0, 3.0]]]),
    }
    env.load_state_dict(state)
    # All stay. The nearest agents are 1, 1 and 3 away: half of -5.
    step = env.step(np.zeros((1, 3), int))
    assert step.rewards[0] == pytest.approx(-2.5, abs=1e-5)
    # At .1 the discs overlap by .2: force 100 * .2 = 20, velocity +-2 in one step, which the
    # speed 2 / .75 towards each other just undoes. Two of three agents touch one: half of -2/3.
    state["arrays"]["positions"][0, 1, 0] = 0.1
    state["arrays"]["velocities"][0, :, 0] = [2 / 0.75, -2 / 0.75, 0.0]
    env.load_state_dict(state)
    step = env.step(np.zeros((1, 3), int))
    assert step.rewards[0] == pytest.approx(-2.5 - 1 / 3, abs=1e-5)


def test_contact_force_is_stiffness_times_overlap() -> None:
    # Centres .2 apart, discs of radius .15 overlap by .1: force 100 * .1 = 10, equal and opposite.
    forces = contact_forces(np.array([[[0.0, 0.0], [0.2, 0.0]]]))
    np.testing.assert_allclose(forces, [[[-10, 0], [10, 0]]], atol=1e-6)
    apart = contact_forces(np.array([[[0.0, 0.0], [0.5, 0.0]]]))
    np.testing.assert_allclose(apart, 0.0, atol=1e-6)


def pursue(positions: np.ndarray, velocities: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return the actions after which each agent is nearest to its target."""
    after, _ = moved(positions[:, :, None], velocities[:, :, None], FORCES)
    return np.linalg.norm(after - targets[:, :, None], axis=-1).argmin(axis=2)


def pursue_own(step: EnvStep) -> np.ndarray:
    velocities, positions, way = np.split(step.obs.astype(float), 3, axis=2)
    return pursue(positions, velocities, positions + way)


def pursue_best_assignment(step: EnvStep) -> np.ndarray:
    velocities, positions = step.obs[:, :, :2].astype(float), step.obs[:, :, 2:4].astype(float)
    landmarks = step.obs[:, 0, 4:10].reshape(-1, 3, 2) + positions[:, :1]
    orders = np.array(list(permutations(range(3))))
    distances = np.linalg.norm(positions[:, :, None] - landmarks[:, None], axis=-1)
    best = orders[distances[:, np.arange(3), orders].sum(axis=2).argmin(axis=1)]
    return pursue(positions, velocities, np.take_along_axis(landmarks, best[:, :, None], axis=1))


@pytest.mark.parametrize(
    ("name", "policy", "scripted", "random"),
    [
        ("nav_6", pursue_own, -6.4, -28.6),
        ("nav_12", pursue_own, -6.4, -28.5),
        ("spread_3", pursue_best_assignment, -6.2, -25.8),
    ],
)
def test_particle_scores_are_those_documented(
    name: str, policy: Policy, scripted: float, random: float
) -> None:
    # Standard error of the mean at 1,000 episodes: at most .1 scripted, .25 random.
    env = make_env(f"particles/{name}", 1_000)
    assert episode_returns(env, policy).mean() == pytest.approx(scripted, abs=0.4)
    assert episode_returns(env, random_policy(env)).mean() == pytest.approx(random, abs=1.0)
