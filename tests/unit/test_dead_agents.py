"""Agents that die leave losses, statistics and gradients.

Axes: T time, E environments, N agents.
"""

import copy
import dataclasses
from typing import Any

import pytest
import torch

from marl.config import LearnerConfig
from marl.data.types import Rewards
from marl.nn.layers import masked_mean
from tests.learners import (
    ONE_STEP,
    assert_same,
    changed,
    collect,
    local_stream,
    make_mappo,
    parameters_after,
    random_rewards,
    team_stream,
    with_unit_values,
)
from tests.scripted import ScriptedEnv

ENDS = dataclasses.replace(ONE_STEP, absence="ends")


@pytest.mark.parametrize("absence", ["ends", "alive_mean", "team_share", "centred"])
def test_dead_agents_leave_every_part_of_the_update(absence: Any) -> None:
    """Policy and value losses, entropy, statistics and gradients: nothing of theirs matters."""
    options = {"agents_die": True}
    env = ScriptedEnv([[4], [4]], obs_sizes=(4, 4, 4), action_sizes=(3, 3, 3), **options)
    learner = LearnerConfig(entropy_coef=0.1, epochs=2, minibatches=2, absence=absence)
    mappo = make_mappo(env.spec, learner)
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
    mappo = with_unit_values(make_mappo(env.spec, ENDS))
    rollout = collect(mappo, env, steps=6)
    rewards = random_rewards(rollout)
    assert rewards.local is not None
    stream = local_stream(mappo, rollout, rewards)
    delta = rewards.local[0, 0, 0] - stream.values[0, 0, 0]
    assert stream.advantages[0, 0, 0].item() == pytest.approx(delta.item(), abs=1e-6)
    delta = rewards.local[1, 0, 1] - stream.values[1, 0, 1]
    assert stream.advantages[1, 0, 1].item() == pytest.approx(delta.item(), abs=1e-6)
    alive = rollout.transitions.alive
    assert alive is not None
    assert (stream.advantages[~alive] == 0.0).all()


@pytest.mark.parametrize(
    ("gae_lambda", "expected", "always_there"),
    [
        # Alive, absent, alive; gamma = .5, r = 0, 0, 1, and V = .5 where alive.
        # The absence is worth nothing: delta_0 = 0 + .5 * 0 - .5, and delta_2 = 1 + 0 - .5, since
        # the episode ends there. Nothing that is earned after the return reaches step 0.
        # Who is always there: delta_0 = delta_1 = .5 * .5 - .5 = -.25, delta_2 = .5;
        # lambda = 1: A_1 = -.25 + .5 * .5 = 0, A_0 = -.25 + .5 * 0.
        (0.0, [-0.5, 0.5], [-0.25, -0.25, 0.5]),
        (1.0, [-0.5, 0.5], [-0.25, 0.0, 0.5]),
        # lambda = .5: A_1 = -.25 + .25 * .5 = -.125, A_0 = -.25 + .25 * -.125.
        (0.5, [-0.5, 0.5], [-0.28125, -0.125, 0.5]),
    ],
)
def test_an_absence_ends_an_agents_stream_though_it_returns(
    gae_lambda: float, expected: list[float], always_there: list[float]
) -> None:
    mappo = make_mappo(
        ScriptedEnv([[3]], agents_die=True).spec,
        dataclasses.replace(ENDS, gamma=0.5, gae_lambda=gae_lambda),
    )
    assert "local" in mappo.critics
    for parameter in mappo.critics["local"].parameters():
        parameter.data.zero_()
    mappo.critics["local"].value_norm.update(torch.tensor([0.0, 1.0]))  # 0 comes out as their mean
    rollout = collect(mappo, ScriptedEnv([[3]], agents_die=True), steps=3)
    alive = torch.tensor([[[True, True]], [[False, True]], [[True, True]]])
    following = torch.cat((alive[1:], alive[-1:]))
    rollout = changed(rollout, alive=alive, next_alive=following)
    paid = torch.tensor([0.0, 0.0, 1.0]).view(3, 1, 1).expand(3, 1, 2)
    rewards = Rewards(team=paid[..., 0], local=paid)
    found = local_stream(mappo, rollout, rewards).advantages
    assert found[[0, 2], 0, 0].tolist() == expected
    assert found[:, 0, 1].tolist() == always_there


@pytest.mark.parametrize("tells", [True, False])
def test_who_dies_in_the_last_step_of_an_interrupted_episode_has_no_future(tells: bool) -> None:
    # Episodes of 2 steps, the second one truncated: agent 1 acts in its last step and dies by it.
    env = ScriptedEnv([[2]], agents_die=True, tells_final_alive=tells)
    mappo = with_unit_values(make_mappo(env.spec, ENDS))
    rollout = collect(mappo, env, steps=4)
    assert rollout.truncated.flatten().tolist() == [False, False, False, True]
    rewards, critic = random_rewards(rollout), mappo.critics["local"]
    assert rewards.local is not None
    assert critic is not None
    steps = rollout.transitions
    stream = local_stream(mappo, rollout, rewards)
    with torch.no_grad():
        final = critic(mappo.norm.obs(steps.next_obs), steps.next_state)[3, 0, 1].item()
    assert final != 0.0
    delta = rewards.local[3, 0, 1] - stream.values[3, 0, 1]
    expected = delta.item() + (0.0 if tells else 0.99 * final)
    assert stream.advantages[3, 0, 1].item() == pytest.approx(expected, abs=1e-6)
    # The first episode terminates in step 1: that step is followed by nothing, whoever lives.
    delta = rewards.local[1, 0, 1] - stream.values[1, 0, 1]
    assert stream.advantages[1, 0, 1].item() == pytest.approx(delta.item(), abs=1e-6)


def test_an_absence_leaves_the_teams_stream() -> None:
    env = ScriptedEnv([[8]], agents_die=True)
    mappo = make_mappo(env.spec)
    rollout = collect(mappo, env)
    there = torch.ones_like(rollout.log_probs, dtype=torch.bool)
    rewards = random_rewards(rollout)
    full = changed(rollout, alive=there, next_alive=there)
    found = team_stream(mappo, rollout, rewards).advantages
    assert torch.equal(found, team_stream(mappo, full, rewards).advantages)


def test_dead_rows_of_a_rollout_leave_the_value_statistics() -> None:
    env = ScriptedEnv([[8]], agents_die=True)
    mappo = make_mappo(env.spec, ENDS)
    rollout = collect(mappo, env)
    alive, critic = rollout.transitions.alive, mappo.critics["local"]
    assert alive is not None
    assert critic is not None
    stream = local_stream(mappo, rollout, random_rewards(rollout))
    mappo.update(rollout, random_rewards(rollout), 1.0)
    # Before the first targets all values are 0, so the advantages are the targets.
    expected = stream.advantages[alive]
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
    assert masked_mean(torch.tensor([1.0, 100.0]), torch.tensor([False, True])).item() == 100.0
