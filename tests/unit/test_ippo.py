"""Independent PPO: its critics see what their agent sees, and nothing else.

Axes: T time, E environments, N agents.
"""

import pytest
import torch

from marl.config import LearnerConfig, NetworkConfig
from marl.data.types import Rewards
from marl.learners.gae import dual_advantages
from marl.learners.mappo import Ippo, Mappo
from tests.learners import (
    LENGTHS,
    NETWORK,
    RECURRENT,
    assert_same,
    changed,
    collect,
    make_mappo,
    parameters_after,
    random_rewards,
    team_stream,
    with_unit_values,
)
from tests.scripted import ScriptedEnv

NETWORKS = pytest.mark.parametrize("network", [NETWORK, RECURRENT], ids=["none", "gru"])


@NETWORKS
def test_the_state_reaches_critics_of_mappo_only(network: NetworkConfig) -> None:
    for kind in (Mappo, Ippo):
        env = ScriptedEnv(LENGTHS)
        learner = make_mappo(env.spec, kind=kind, network=network)
        rollout = collect(learner, env)
        moved = changed(
            rollout,
            state=rollout.transitions.state + 1.0,
            next_state=rollout.transitions.next_state + 1.0,
        )
        rewards = random_rewards(rollout)
        before = parameters_after(learner, rollout, rewards)
        after = parameters_after(learner, moved, rewards)
        if kind is Ippo:
            assert_same(before, after)
        else:
            assert any(not torch.equal(before[name], after[name]) for name in before)


@NETWORKS
def test_an_agent_s_value_depends_on_its_own_observations(network: NetworkConfig) -> None:
    env = ScriptedEnv(LENGTHS)
    learner = make_mappo(env.spec, kind=Ippo, network=network)
    rollout = collect(learner, env)
    obs = rollout.transitions.obs.clone()
    obs[4, 0, 1] += 1.0
    rewards = random_rewards(rollout)
    before = team_stream(learner, rollout, rewards).values
    after = team_stream(learner, changed(rollout, obs=obs), rewards).values
    moved = (before != after).any(dim=0)
    assert moved.tolist() == [[False, True], [False, False]]


@pytest.mark.parametrize("absence", ["ends", "alive_mean"])
def test_what_the_dead_are_shown_changes_nothing(absence: str) -> None:
    env = ScriptedEnv(LENGTHS, agents_die=True)
    learner = with_unit_values(make_mappo(env.spec, LearnerConfig(absence=absence), kind=Ippo))
    rollout = collect(learner, env)
    steps, rewards = rollout.transitions, random_rewards(rollout)
    assert steps.alive is not None
    assert steps.next_alive is not None
    other = changed(
        rollout,
        obs=steps.obs + 9.0 * ~steps.alive.unsqueeze(-1),
        next_obs=steps.next_obs + 9.0 * ~steps.next_alive.unsqueeze(-1),
    )
    assert_same(
        parameters_after(learner, rollout, rewards), parameters_after(learner, other, rewards)
    )


def test_every_agent_has_an_advantage_of_the_team_s_reward() -> None:
    """That of its own values, also behind an agent's death: the team's stream goes on."""
    env = ScriptedEnv([[3]], agents_die=True)
    learner = make_mappo(env.spec, kind=Ippo)
    with torch.no_grad():
        for parameter in learner.critics["team"].parameters():
            parameter.zero_()
    rollout = collect(learner, env, steps=3)  # agent 0 dies after step 0; the third step ends it
    team = torch.tensor([[1.0], [2.0], [4.0]])
    stream = team_stream(learner, rollout, Rewards(team=team))
    # Values 0, gamma .99, lambda .95: 4, then 2 + .9405 * 4, then 1 + .9405 * 5.762.
    expected = torch.tensor([6.4191, 5.762, 4.0]).view(3, 1, 1).expand(3, 1, 2)
    assert torch.allclose(stream.advantages, expected, atol=1e-4)


def test_advantages_of_every_agent_are_standardised_over_the_living() -> None:
    team = torch.tensor([[[1.0, 2.0], [3.0, 90.0]]])
    alive = torch.tensor([[[True, True], [True, False]]])
    # Mean 2, variance 2 / 3 over three.
    found = dual_advantages(team, None, alive, 2, 0.5)
    assert torch.allclose(found, torch.tensor([[[-1.2247, 0.0], [1.2247, 0.0]]]), atol=1e-3)
