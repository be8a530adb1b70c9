"""AREL, STAS and TAR2: their equations on numbers by hand, and what they promise.

Axes: M episodes, L steps, N agents.
"""

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import nn

from marl.config import RewardConfig
from marl.config.schema import SequenceConfig
from marl.data.types import History, Rewards, Transitions
from marl.rewards.arel import ArelLoss, ArelReward, variances
from marl.rewards.sequence import Sequences
from marl.rewards.stas import StasReward
from marl.rewards.tar2 import Tar2Loss, Tar2Reward, last_steps, redistributed
from tests.reward_models import batch_of, make_model, make_steps


def whole(steps: Transitions) -> Transitions:
    """Return steps (M, L) as those of whole episodes of equal length."""
    offsets = torch.arange(steps.terminated.shape[1]).expand(steps.terminated.shape)
    history = History(starts=offsets == 0, time_axis=1, present=torch.ones_like(offsets).bool())
    return dataclasses.replace(steps, history=history)


def weighted(*, length_normalised: bool = False, **sequence: float) -> RewardConfig:
    """Return settings with these weights."""
    settings: dict[str, Any] = dict(sequence)
    return RewardConfig(length_normalised=length_normalised, sequence=SequenceConfig(**settings))


def test_variances_by_hand() -> None:
    # 1, 3 and 5 around 3: (4 + 0 + 4) / 2; 2 and 4 around 3: (1 + 1) / 1; one step has none.
    rewards = torch.tensor([[1.0, 3.0, 5.0], [2.0, 4.0, 99.0], [7.0, 99.0, 99.0]])
    present = torch.tensor([[True] * 3, [True, True, False], [True, False, False]])
    assert variances(rewards, present).tolist() == [4.0, 2.0, 0.0]


def test_the_loss_of_arel_by_hand() -> None:
    # alpha 10, T_max 10: scores are sums, 9 and 6; targets 16 / 2 = 8 and 14 / 2 = 7: errors 1 and
    # -1. Variances 4 and 2 as above, the mean is 3.
    batch = batch_of([[1.0] * 3, [1.0, 1.0, 0.0]], [3, 2], returns=[16.0, 14.0])
    batch = dataclasses.replace(batch, return_scale=2.0)
    rewards = Rewards(team=torch.tensor([[1.0, 3.0, 5.0], [2.0, 4.0, 99.0]]))
    for weight, expected in ((0.0, 1.0), (20.0, 61.0)):
        loss = ArelLoss(weighted(variance_weight=weight), 10)(rewards, batch)[0]
        assert float(loss) == pytest.approx(expected)
    # Per episode step: alpha R / length, a third and a half of 10 times as much.
    with_variance, without = (
        ArelLoss(weighted(length_normalised=True, variance_weight=weight), 10)(rewards, batch)[0]
        for weight in (1.0, 0.0)
    )
    assert float(with_variance - without) == pytest.approx((4 * 100 / 9 + 2 * 100 / 4) / 2)


def test_arel_does_not_depend_on_how_agents_are_numbered() -> None:
    model, steps = make_model(ArelReward, 0.0), make_steps(0, 2, 5)
    turned = [1, 2, 0]
    other = dataclasses.replace(
        steps, obs=steps.obs[:, :, turned], actions=steps.actions[:, :, turned]
    )
    torch.testing.assert_close(model(whole(other)).team, model(whole(steps)).team)


@pytest.mark.parametrize("kind", [StasReward, Tar2Reward])
def test_the_agents_rewards_add_up_to_the_teams(kind: type) -> None:
    rewards = make_model(kind, 0.0)(whole(make_steps(0, 2, 5, dies=True)))
    torch.testing.assert_close(rewards.local.sum(dim=-1), rewards.team)


def test_redistribution_by_hand() -> None:
    """Two steps of two agents; in the second episode, one agent is there in one step."""
    scores = torch.tensor([[[1.0, 3.0], [5.0, 2.0], [2.0, 0.0]], [[4.0, 9.0], [6.0, 2.0], [0, 0]]])
    acting = torch.ones(2, 3, 2, dtype=torch.bool)
    acting[1, 0, 1] = False
    acting[1, 2] = False
    # Steps' scores 4, 7, 2: 2, 5 and 0 above the least, so 2/7, 5/7, 0. In each the agent of the
    # larger score gets all. The second episode's steps: 4 and 8, so 0 and 1; agent 0 gets all.
    found = redistributed(scores, acting, torch.tensor([7.0, -3.0]))
    assert found[0].tolist() == [[0.0, 2.0], [5.0, 0.0], [0.0, 0.0]]
    assert found[1].tolist() == [[0.0, 0.0], [-3.0, 0.0], [0.0, 0.0]]
    three = torch.tensor([[[1.0, 2.0, 4.0]]])  # 0, 1 and 3 above the least
    found = redistributed(three, torch.ones(1, 1, 3, dtype=torch.bool), torch.tensor([8.0]))
    assert found.tolist() == [[[0.0, 2.0, 6.0]]]


def test_equal_scores_are_paid_alike() -> None:
    acting = torch.tensor([[[True, True], [True, False]]])
    found = redistributed(torch.zeros(1, 2, 2), acting, torch.tensor([8.0]))
    assert found.tolist() == [[[2.0, 2.0], [4.0, 0.0]]]


def test_returns_are_paid_where_they_are_known() -> None:
    """They add up to the return above the least, if that is negative; else to the return."""
    model, steps = make_model(Tar2Reward, 0.0), make_steps(0, 3, 4)
    present = torch.ones(3, 4, dtype=torch.bool)
    present[1, 3] = False
    episodes = Sequences(obs=steps.obs, actions=steps.actions, alive=None, present=present)
    scores = model.read(episodes)
    returns = torch.tensor([6.0, 1.0, torch.nan])
    paid = model.paid(scores, episodes, returns, -2.0)
    torch.testing.assert_close(paid.team.sum(dim=-1)[:2], torch.tensor([8.0, 3.0]))
    torch.testing.assert_close(paid.local.sum(dim=-1), paid.team)
    # In the episode that goes on, each gets the mean: (8 + 3) over 7 steps of 3 agents.
    torch.testing.assert_close(paid.local[2], torch.full((4, 3), 11 / 21))
    paid = model.paid(scores, episodes, returns, 0.5)
    torch.testing.assert_close(paid.team.sum(dim=-1)[:2], torch.tensor([6.0, 1.0]))


def test_the_last_step_of_each_agent() -> None:
    x = torch.arange(6.0).view(1, 3, 2, 1)
    acting = torch.tensor([[[True, True], [True, False], [False, False]]])
    assert last_steps(x, acting).flatten().tolist() == [2.0, 1.0]


def test_actions_are_predicted_from_what_they_changed() -> None:
    """Without weights both of two actions are as likely; of the dead nothing is predicted."""
    model, steps = make_model(Tar2Reward, 0.0), make_steps(0, 2, 4, dies=True)
    weights = [parameter.detach().clone() for parameter in model.inverse.parameters()]
    for parameter in model.inverse.parameters():
        nn.init.zeros_(parameter)
    assert steps.alive is not None
    expected = torch.where(steps.alive.any(dim=-1), math.log(2.0), 0.0)
    torch.testing.assert_close(model(whole(steps)).auxiliary, expected)
    for parameter, weight in zip(model.inverse.parameters(), weights, strict=True):
        parameter.data.copy_(weight)
    # In the first step, where agents that see the same are told apart by nothing, the probability
    # of the action that all take does not depend on it.
    steps = dataclasses.replace(
        make_steps(0, 2, 4), obs=steps.obs[:, :, :1].expand(steps.obs.shape)
    )
    losses = [
        model(whole(dataclasses.replace(steps, actions=torch.full_like(steps.actions, action))))
        for action in (0, 1)
    ]
    total = sum((-each.auxiliary[:, 0]).exp() for each in losses)
    torch.testing.assert_close(total, torch.ones(2))


def test_the_loss_of_tar2_adds_that_of_its_actions() -> None:
    batch = batch_of([[1.0, 1.0], [1.0, 0.0]], [2, 1], returns=[5.0, 3.0])
    team = torch.tensor([[1.0, 3.0], [4.0, 99.0]])  # sums 4 and 4: errors -1 and 1
    rewards = Rewards(team=team, auxiliary=torch.tensor([[1.0, 2.0], [6.0, 99.0]]))
    loss, metrics = Tar2Loss(weighted(dynamics_weight=0.05), 10)(rewards, batch)
    assert float(metrics["regression/inverse_dynamics"]) == pytest.approx(3.0)
    assert float(loss) == pytest.approx(1.0 + 0.05 * 3.0)
    assert float(Tar2Loss(RewardConfig(), 10)(Rewards(team=team), batch)[0]) == pytest.approx(1.0)
