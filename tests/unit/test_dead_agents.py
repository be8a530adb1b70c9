"""Agents that die leave losses, statistics and gradients.

Axes: T time, E environments, N agents.
"""

import copy
import dataclasses

import pytest
import torch

from marl.config import LearnerConfig
from marl.numerics import masked_mean
from marl.types import Rewards
from tests.learners import (
    assert_same,
    changed,
    collect,
    local_stream,
    make_mappo,
    parameters_after,
    random_rewards,
)
from tests.scripted import ScriptedEnv


def test_dead_agents_leave_every_part_of_the_update() -> None:
    """Policy and value losses, entropy, statistics and gradients: nothing of theirs matters."""
    options = {"agents_die": True}
    env = ScriptedEnv([[4], [4]], obs_sizes=(4, 4, 4), action_sizes=(3, 3, 3), **options)
    mappo = make_mappo(env.spec, LearnerConfig(entropy_coef=0.1, epochs=2, minibatches=2))
    rollout = collect(mappo, env)
    rewards, steps = random_rewards(rollout), rollout.transitions
    assert steps.alive is not None
    assert rewards.local is not None
    dead = ~steps.alive
    assert dead.any()
    obs, next_obs = steps.obs.clone(), steps.next_obs.clone()
    obs[dead] = 5.0
    assert steps.next_alive is not None
    next_obs[~steps.next_alive] = 5.0
    other = changed(
        rollout,
        obs=obs,
        next_obs=next_obs,
        actions=torch.where(dead, (steps.actions + 1) % 3, steps.actions),
    )
    other = dataclasses.replace(other, log_probs=rollout.log_probs.where(~dead, torch.tensor(3.0)))
    noisy = Rewards(team=rewards.team, local=rewards.local.where(~dead, torch.tensor(1e3)))
    assert_same(parameters_after(mappo, rollout, rewards), parameters_after(mappo, other, noisy))


def test_a_death_ends_an_agents_stream_of_rewards() -> None:
    """Its last living step is followed by nothing: no value and no trace."""
    env = ScriptedEnv([[8]], agents_die=True)  # agent 0 lives in step 0, agent 1 in steps 0 and 1
    mappo = make_mappo(env.spec)
    rollout = collect(mappo, env, steps=6)
    rewards = random_rewards(rollout)
    assert rewards.local is not None
    stream = local_stream(mappo, rollout, rewards)
    delta = rewards.local[0, 0, 0] - stream.values[0, 0, 0]
    assert stream.advantages[0, 0, 0].item() == pytest.approx(delta.item(), abs=1e-6)
    delta = rewards.local[1, 0, 1] - stream.values[1, 0, 1]
    assert stream.advantages[1, 0, 1].item() == pytest.approx(delta.item(), abs=1e-6)


def test_dead_rows_of_a_rollout_leave_the_value_statistics() -> None:
    env = ScriptedEnv([[8]], agents_die=True)
    mappo = make_mappo(env.spec)
    rollout = collect(mappo, env)
    alive, critic = rollout.transitions.alive, mappo.local_critics
    assert alive is not None
    assert critic is not None
    values = critic(mappo.norm.obs(rollout.transitions.obs), rollout.transitions.state).detach()
    stream = local_stream(mappo, rollout, random_rewards(rollout))
    mappo.update(rollout, random_rewards(rollout), 1.0)
    # Before the first update values come out in units of the reward, so these are the targets.
    expected = (stream.advantages + values)[alive]
    assert critic.value_norm.mean.item() == pytest.approx(expected.mean().item(), abs=1e-5)


def test_a_minibatch_of_the_dead_has_zero_loss_and_zero_gradient() -> None:
    x = torch.randn(3, 2, requires_grad=True)
    loss = masked_mean(x.exp(), torch.zeros(3, 2, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0.0
    assert x.grad is not None
    assert not x.grad.any()


@pytest.mark.filterwarnings("ignore:var")  # the variance that is explained of nothing
def test_an_update_on_the_dead_alone_moves_no_actor() -> None:
    env = ScriptedEnv([[4], [4]], agents_die=True)
    mappo = make_mappo(env.spec, LearnerConfig(entropy_coef=0.1))
    rollout = collect(mappo, env)
    nobody = torch.zeros_like(rollout.log_probs, dtype=torch.bool)
    rollout = changed(rollout, alive=nobody, next_alive=nobody)
    before = copy.deepcopy(mappo.actor.state_dict())
    metrics = mappo.update(rollout, random_rewards(rollout), 1.0)
    assert metrics["policy/loss"] == 0.0
    assert metrics["policy/kl"] == 0.0
    assert_same(before, mappo.actor.state_dict())


def test_masked_mean_by_hand() -> None:
    present = torch.tensor([True, False, True])
    assert masked_mean(torch.tensor([1.0, 100.0, 3.0]), present).item() == 2.0
    assert masked_mean(torch.tensor([1.0, float("nan"), 3.0]), present).item() == 2.0
