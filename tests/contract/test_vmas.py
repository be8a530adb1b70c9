"""VMAS keeps the environment contract and equals its source."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from envs import EnvError, HasHiddenRewards, VecEnv, check_env, make_env
from envs.catalogue import VMAS_NAMES
from envs.rng import random_actions
from envs.vmas import LEFT_OUT, Vmas

vmas = pytest.importorskip("vmas", reason="the extra vmas is not installed")

NUM_ENVS = 3

ALIKE = {
    "give_way": "all 3 environments do the same under the same actions",
    "multi_give_way": "seeds 0 and 1 gave the same episodes",
}
"""Scenarios without chance in their starts, and what `check_env` warns of there."""
SLOW = {"road_traffic", "sampling"}
"""Steps of these take so long that only their first ones are tested; `marl check` passes."""


@pytest.mark.parametrize("continuous", [True, False])
@pytest.mark.parametrize(
    "scenario",
    # Between them: an object that changes owner, cached forces, messages, agents that observe
    # differently, episodes that end by themselves, state that outlives an episode.
    ["balance", "simple_reference", "simple_speaker_listener", "wheel", "wind_flocking"],
)
def test_contract(scenario: str, continuous: bool) -> None:
    env = Vmas(NUM_ENVS, scenario, max_steps=15, continuous_actions=continuous)
    assert check_env(env, steps=30) == []
    assert isinstance(env, VecEnv)
    assert isinstance(env, HasHiddenRewards)


@pytest.mark.parametrize("scenario", sorted(set(VMAS_NAMES) - SLOW))
def test_every_scenario_on_offer_keeps_the_contract(scenario: str) -> None:
    problems = check_env(Vmas(NUM_ENVS, scenario, max_steps=6), steps=12)
    assert len(problems) == (scenario in ALIKE)
    assert all(ALIKE[scenario] in problem for problem in problems)


@pytest.mark.parametrize("scenario", sorted(SLOW))
def test_a_slow_scenario_starts_and_ends(scenario: str) -> None:
    env = make_env(f"vmas/{scenario}", 2, max_steps=2)
    env.reset(0)
    still = np.zeros((2, env.spec.num_agents, env.spec.action_size), np.float32)
    assert np.isfinite(env.step(still).obs).all()
    assert env.step(still).truncated.all()


def test_a_scenario_that_is_left_out_says_why() -> None:
    with pytest.raises(EnvError, match="has this scenario, but two sides play against each other"):
        make_env("vmas/simple_tag", 2)
    with pytest.raises(EnvError, match=r"'vmas/balnce'.*did you mean 'vmas/balance'"):
        make_env("vmas/balnce", 2)


def restarted(source: Any, obs: list[Any], done: Any) -> list[Any]:
    """Return what all agents see once the environments that are done have begun anew."""
    if done.all():
        return source.reset()  # type: ignore[no-any-return]  # VMAS is untyped
    for index in np.flatnonzero(done).tolist():
        obs = source.reset_at(index)
    return obs


@pytest.mark.parametrize("scenario", ["balance", "navigation"])
def test_a_thousand_steps_equal_the_source(scenario: str) -> None:
    env = Vmas(NUM_ENVS, scenario, max_steps=60)
    source = vmas.make_env(scenario, NUM_ENVS, max_steps=60, terminated_truncated=True)
    draw, ends = np.random.default_rng(0), 0
    step, obs = env.reset(7), source.reset(seed=7)
    for _ in range(1000):
        np.testing.assert_array_equal(step.obs, torch.stack(obs, dim=1))
        np.testing.assert_array_equal(step.state, torch.cat(obs, dim=1))
        actions = random_actions(env.spec, draw, None)
        step = env.step(actions)
        given = [torch.from_numpy(actions[:, agent].copy()) for agent in range(len(obs))]
        obs, rewards, terminated, truncated, _ = source.step(given)
        np.testing.assert_array_equal(step.final_obs, torch.stack(obs, dim=1))
        np.testing.assert_array_equal(step.rewards, torch.stack(rewards).mean(dim=0))
        np.testing.assert_array_equal(step.terminated, terminated)
        np.testing.assert_array_equal(step.truncated, truncated & ~terminated)
        done = terminated | truncated
        if done.any():
            obs = restarted(source, obs, done)
            ends += int(done.sum())
    assert ends >= 16 * NUM_ENVS  # 1,000 steps hold at least 16 episodes of 60


def test_state_continues_in_another_environment() -> None:
    env, other = (Vmas(NUM_ENVS, "simple_reference", max_steps=15) for _ in range(2))
    draw = np.random.default_rng(0)
    env.reset(1)
    for _ in range(22):
        env.step(random_actions(env.spec, draw, None))
    other.load_state_dict(env.state_dict())
    for _ in range(40):
        actions = random_actions(env.spec, draw, None)
        ours, theirs = env.step(actions), other.step(actions)
        np.testing.assert_array_equal(ours.obs, theirs.obs)
        np.testing.assert_array_equal(ours.rewards, theirs.rewards)


def test_random_numbers_are_its_own() -> None:
    alone, beside = Vmas(NUM_ENVS, "navigation", max_steps=10), []
    torch.manual_seed(5)
    expected = torch.get_rng_state()
    first = alone.reset(3)
    still = np.zeros((NUM_ENVS, alone.spec.num_agents, 2), np.float32)
    starts = [alone.step(still).obs.copy() for _ in range(25)]
    assert torch.equal(torch.get_rng_state(), expected)

    again, neighbour = (Vmas(NUM_ENVS, "navigation", max_steps=10) for _ in range(2))
    np.testing.assert_array_equal(again.reset(3).obs, first.obs)
    neighbour.reset(4)
    for _ in range(25):
        neighbour.step(still)
        beside.append(again.step(still).obs.copy())
    np.testing.assert_array_equal(starts, beside)


@pytest.mark.parametrize("finite_horizon", [True, False])
def test_time_limit(finite_horizon: bool) -> None:
    env = Vmas(NUM_ENVS, "navigation", max_steps=4, finite_horizon=finite_horizon)
    env.reset(0)
    still = np.zeros((NUM_ENVS, env.spec.num_agents, 2), np.float32)
    steps = [env.step(still) for _ in range(4)]  # nobody reaches its goal by standing still
    assert not any((step.terminated | step.truncated).any() for step in steps[:3])
    assert steps[3].terminated.all() == finite_horizon
    assert steps[3].truncated.all() != finite_horizon


def test_actions_fill_each_agents_range() -> None:
    env = Vmas(2, "give_way")  # its agents' range is [-0.5, 0.5]
    given = np.array([[[1.0, -1.0], [0.5, 0.0]]] * 2, np.float32)
    first, second = env._actions.split(given)
    assert first.tolist() == [[0.5, -0.5]] * 2
    assert second.tolist() == [[0.25, 0.0]] * 2


def test_what_the_team_earns_is_a_choice() -> None:
    """The mean unless another is chosen; here each agent is paid its own progress."""
    make = partial(Vmas, NUM_ENVS, "navigation", shared_rew=False)
    mean, total, strict = make(), make(team_reward="sum"), make(team_reward="error")
    ahead = np.zeros((NUM_ENVS, mean.spec.num_agents, 2), np.float32)
    ahead[:, 0] = 1.0
    for env in (mean, total, strict):
        env.reset(0)
    for _ in range(3):
        rewards, sums = mean.step(ahead).rewards, total.step(ahead).rewards
        np.testing.assert_allclose(sums, rewards * mean.spec.num_agents, rtol=1e-5)
    assert (rewards != 0).all()
    with pytest.raises(EnvError) as caught:
        strict.step(ahead)
    assert "copy 0: agents were paid differently (agent 0: " in str(caught.value)
    assert "set `--env.options team_reward mean`" in str(caught.value)
    with pytest.raises(EnvError, match="choose sum, mean, error"):
        Vmas(NUM_ENVS, "navigation", team_reward="average")


def test_names() -> None:
    everything = {*vmas.scenarios, *vmas.mpe_scenarios, *vmas.debug_scenarios}
    assert set(VMAS_NAMES) | set(LEFT_OUT) == everything
    assert not set(VMAS_NAMES) & set(LEFT_OUT)
    env = make_env("vmas/navigation", 2, n_agents=5)
    assert env.spec.num_agents == 5
    assert env.spec.state_size == 5 * env.spec.obs_size


def test_wrong_actions_and_options() -> None:
    env = Vmas(2, "navigation")
    with pytest.raises(EnvError, match="step before reset"):
        env.step(np.zeros((2, 4, 2)))
    env.reset(0)
    with pytest.raises(EnvError, match=r"give float actions of shape \(2, 4, 2\)"):
        env.step(np.zeros((2, 4), np.int64))
    with pytest.raises(EnvError, match=r"action 2.0 of copy 0, agent 0 is illegal"):
        env.step(np.full((2, 4, 2), 2.0))
    with pytest.raises(EnvError, match="max_steps is 0"):
        Vmas(2, "navigation", max_steps=0)
