"""Learning from returns: randomised return decomposition and IRCR, numbers by hand.

Axes: M episodes, K sampled steps, T time, E environments.
"""

import dataclasses
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from marl.config import RewardConfig
from marl.data.replay import draw_steps
from marl.data.types import EpisodeBatch, FinishedEpisodes, Rewards
from marl.nn.normalisation import TeamNorm
from marl.rewards import FactoredReward, RewardLearner
from marl.rewards.constant import ConstantReward
from marl.rewards.losses import PreferenceLoss, RegressionLoss, SumOfLosses, score_variance
from tests.reward_models import (
    CPU,
    OneBatch,
    batch_of,
    generator,
    make_model,
    make_spec,
    make_steps,
    uniform_policy,
)

REWARDS = torch.tensor([[1.0, 2.0, 100.0], [2.0, 4.0, 6.0]])


def two_episodes(returns: list[float]) -> EpisodeBatch:
    """Return a whole episode of two steps, and three of the four steps of another."""
    weights = [[1.0, 1.0, 0.0], [4 / 3, 4 / 3, 4 / 3]]
    batch = batch_of(weights, [2, 4], returns=returns)
    return dataclasses.replace(batch, return_scale=2.0)


def regression(batch: EpisodeBatch, rewards: Tensor = REWARDS, **options: Any) -> float:
    """Return the loss where episodes have at most 10 steps."""
    loss = RegressionLoss(RewardConfig(**options), 10)
    return float(loss(Rewards(team=rewards), batch)[0])


def test_regression_by_hand() -> None:
    # alpha 10, T_max 10: S is the estimated sum, 1 + 2 = 3 and 4/3 (2 + 4 + 6) = 16. Returns 4 and
    # 34 of deviation 2 are 2 and 17: errors 1 and -1, mean square 1.
    assert regression(two_episodes([4.0, 34.0])) == pytest.approx(1.0)
    # Half the alpha halves S: errors -.5 and -9.
    assert regression(two_episodes([4.0, 34.0]), alpha=5.0) == pytest.approx((0.25 + 81.0) / 2)


def test_length_normalised_regression_by_hand() -> None:
    # alpha times the mean reward, 15 and 40, and returns per T_max steps, 2 * 10/2 = 10 and
    # 17 * 10/4 = 42.5: errors 5 and -2.5, mean square 15.625.
    batch = two_episodes([4.0, 34.0])
    assert regression(batch, length_normalised=True) == pytest.approx(15.625)


def test_unbiased_regression_by_hand() -> None:
    # The first episode is whole: nothing to subtract. Of the second, K = 3 of T = 4 steps are there
    # with Var_K = ((2-4)^2 + 0 + (6-4)^2) / 2 = 4: T^2 (1 - 3/4) 4/3 = 16/3.
    batch = two_episodes([4.0, 34.0])
    variance = score_variance(REWARDS, batch, RewardConfig(), 10)
    torch.testing.assert_close(variance, torch.tensor([0.0, 16 / 3]))
    expected = (1.0 + 1.0 - 16 / 3) / 2
    assert regression(batch, unbiased_regression=True) == pytest.approx(expected, abs=1e-5)
    # Of the mean reward times alpha 10 it is 100 / 16 as large.
    normalised = RewardConfig(length_normalised=True)
    variance = score_variance(REWARDS, batch, normalised, 10)
    torch.testing.assert_close(variance, torch.tensor([0.0, 100 / 3]))


def test_the_variance_of_few_steps_by_hand() -> None:
    # Two of four steps, and padding: Var_K = ((1-2)^2 + (3-2)^2) / 1 = 2, 16 (1 - 2/4) 2/2 = 8.
    # The only step of the other episode has none.
    batch = batch_of([[2.0, 2.0, 0.0], [1.0, 0.0, 0.0]], [4, 1], returns=[0.0, 0.0])
    rewards = torch.tensor([[1.0, 3.0, 100.0], [5.0, -7.0, -7.0]])
    assert score_variance(rewards, batch, RewardConfig(), 10).tolist() == [8.0, 0.0]


def test_unknown_returns_do_not_count() -> None:
    # The second one's error is 16 - 15 = 1; without both there is no loss.
    assert regression(two_episodes([torch.nan, 30.0])) == pytest.approx(1.0)
    assert regression(two_episodes([torch.nan, torch.nan])) == 0.0
    # And no gradient: d (16 - 15)^2 / dR is 2 * 4/3 for the steps of the second.
    rewards = REWARDS.clone().requires_grad_()
    batch = two_episodes([torch.nan, 30.0])
    RegressionLoss(RewardConfig(), 10)(Rewards(team=rewards), batch)[0].backward()
    assert rewards.grad is not None
    torch.testing.assert_close(rewards.grad, torch.tensor([[0.0] * 3, [8 / 3] * 3]))


def test_the_unbiased_loss_is_that_of_the_whole_episode_in_the_mean() -> None:
    """Over all choices of 2 of 4 steps; the biased one is larger by the variance of the sum."""
    rewards = torch.tensor([1.0, -2.0, 5.0, 3.0])
    steps = torch.tensor(list(itertools.combinations(range(4), 2)))  # (6, 2), equally likely
    count = len(steps)
    batch = batch_of([[2.0, 2.0]] * count, [4] * count, returns=[0.3] * count)
    whole = batch_of([[1.0] * 4], [4], returns=[0.3])
    exact = regression(whole, rewards.unsqueeze(0))
    sampled = rewards[steps]
    assert regression(batch, sampled, unbiased_regression=True) == pytest.approx(exact, rel=1e-5)
    # Squared deviations from the mean 1.75 sum to 26.75, over 3; times 16 (1 - 1/2) / 2 = 4.
    biased = regression(batch, sampled)
    assert biased == pytest.approx(exact + 4 * 26.75 / 3, rel=1e-5)


def test_regression_is_evaluated_by_its_correlation_with_the_returns() -> None:
    batch = batch_of([[1.0]] * 4, [1] * 4, returns=[1.0, 2.0, 3.0, torch.nan])
    loss = RegressionLoss(RewardConfig(), 10)
    rising = Rewards(team=torch.tensor([[2.0], [4.0], [6.0], [-9.0]]))
    assert loss.evaluate(rising, batch)["regression/correlation"] == pytest.approx(1.0)
    falling = Rewards(team=-rising.team)
    assert loss.evaluate(falling, batch)["regression/correlation"] == pytest.approx(-1.0)


def test_both_losses_are_added_where_there_is_something_to_read() -> None:
    config, rewards = RewardConfig(), Rewards(team=REWARDS)
    batch = two_episodes([4.0, 34.0])
    expected = PreferenceLoss(config, 10)(rewards, batch)[0] + 1.0
    loss, metrics = SumOfLosses(config, 10)(rewards, batch)
    assert float(loss) == pytest.approx(float(expected))
    assert metrics.keys() == {"preference/loss", "preference/ties", "regression/loss"}
    nobody = torch.zeros(0, dtype=torch.int64)
    silent = dataclasses.replace(batch, first=nobody, second=nobody, labels=torch.zeros(0))
    loss, silent_metrics = SumOfLosses(config, 10)(rewards, silent)
    assert float(loss) == pytest.approx(1.0)
    assert silent_metrics.keys() == metrics.keys()
    assert silent_metrics["preference/loss"].isnan()


def test_regression_needs_no_pair_and_splits_the_return() -> None:
    """Six episodes of random steps and returns: they are fitted, and R = sum_i r_i stays."""
    none = torch.zeros(0, dtype=torch.int64)
    batch = dataclasses.replace(
        batch_of([[1.0] * 5] * 6, [5] * 6, returns=[-3.0, -1.0, 0.0, 1.0, 2.0, 4.0]),
        transitions=make_steps(0, 6, 5),
        first=none,
        second=none,
        labels=torch.zeros(0),
    )
    model = make_model(FactoredReward, 0.0, gradient_steps=400, learning_rate=5e-3)
    config = dataclasses.replace(model.config, regularisation=0.0, split_regularisation=0.0)
    loss = RegressionLoss(config, 10)
    learner = RewardLearner(model, "", config, 10, loss=loss, threads=1, device=CPU)
    metrics = learner.fit(OneBatch(batch), uniform_policy)
    assert metrics["regression/held_out_loss"] < 0.01
    assert metrics["regression/correlation"] > 0.999
    with torch.no_grad():
        rewards = learner.model(batch.transitions)
    torch.testing.assert_close(rewards.team, rewards.local.sum(dim=-1), atol=1e-4, rtol=1e-4)


def test_steps_are_drawn_without_replacement_and_alike() -> None:
    # Of 5 steps 2 are drawn: each in 2/5 of the draws, deviation sqrt(.24 / 20000) = .0035.
    lengths = torch.full((20_000,), 5)
    offsets, weights = draw_steps(lengths, 2, generator())
    assert (offsets[:, 0] < offsets[:, 1]).all()
    assert offsets.max() == 4
    assert (weights == 2.5).all()
    shares = torch.bincount(offsets.flatten(), minlength=5) / len(lengths)
    assert (shares - 0.4).abs().max() < 0.015


def test_short_episodes_are_drawn_whole() -> None:
    offsets, weights = draw_steps(torch.tensor([2, 6]), 4, generator())
    assert offsets[0, :2].tolist() == [0, 1]
    assert weights.tolist() == [[1.0, 1.0, 0.0, 0.0], [1.5] * 4]


def finished(ends: list[int], envs: list[int], returns: list[float]) -> FinishedEpisodes:
    return FinishedEpisodes(
        end_time=torch.tensor(ends),
        env=torch.tensor(envs),
        lengths=torch.ones(len(ends), dtype=torch.int64),
        returns=torch.tensor(returns),
        terminated=torch.ones(len(ends), dtype=torch.bool),
    )


def constant_reward() -> ConstantReward:
    spec = make_spec()
    norm = TeamNorm(spec, enabled=False)
    return ConstantReward(spec, RewardConfig(), 0.0, norm, generator())


def test_ircr_by_hand() -> None:
    # Returns 0, 4 and 2, of which 0 and 4 are the least and largest: 0, 1 and .5. The copy 0 has
    # episodes up to step 1 (return 0) and step 2 (return 4), the copy 1 one up to step 1 (return
    # 2). The rest is open and gets the mean, .5.
    model, steps = constant_reward(), make_steps(0, 4, 2)
    episodes = finished([1, 2, 1], [0, 0, 1], [0.0, 4.0, 2.0])
    done = torch.zeros(4, 2, dtype=torch.bool)
    done[episodes.end_time, episodes.env] = True
    model.update(episodes.returns)
    rewards = model.rollout_rewards(steps, done, episodes)
    assert rewards.team.T.tolist() == [[0.0, 0.0, 1.0, 0.5], [0.5, 0.5, 0.5, 0.5]]
    assert rewards.local is None
    # A return of 8 halves what 4 is worth, and the mean of 0, 4, 2, 8 is 3.5 of 8.
    model.update(torch.tensor([8.0]))
    team = model.rollout_rewards(steps, done, episodes).team
    assert team.T.tolist() == [[0.0, 0.0, 0.5, 0.4375], [0.25, 0.25, 0.4375, 0.4375]]


def test_ircr_before_any_return_pays_nothing() -> None:
    assert constant_reward()(make_steps(0, 2, 3)).team.tolist() == [[0.0] * 3] * 2


def test_ircr_is_the_share_between_the_least_and_the_largest_return() -> None:
    # From 1.5 to 2 the span is a half, and 1.75 stands in the middle; the mean of all three, too.
    model, steps = constant_reward(), make_steps(0, 2, 3)
    episodes = finished([0, 0, 0], [0, 1, 2], [1.5, 2.0, 1.75])
    done = torch.tensor([[True] * 3, [False] * 3])
    model.update(episodes.returns)
    team = model.rollout_rewards(steps, done, episodes).team
    assert team.tolist() == [[0.0, 1.0, 0.5], [0.5, 0.5, 0.5]]


def test_ircr_fits_nothing_and_waits_for_returns_that_differ() -> None:
    steps = make_steps(0, 2, 1)
    done = torch.tensor([[True], [True]])
    equal, different = (finished([0, 1], [0, 0], returns) for returns in ([3.0, 3.0], [3.0, 5.0]))
    learner = RewardLearner(constant_reward(), "", RewardConfig(), 10, threads=1, device=CPU)
    batch = batch_of([[1.0], [1.0]], [1, 1])
    assert learner.fit(OneBatch(batch), uniform_policy) == {"reward/gradient_steps": 0.0}
    for episodes, informed in ((equal, False), (different, True)):
        rewards, _ = learner.rollout_rewards(steps, done, informed=informed, episodes=episodes)
        assert (rewards is not None) == informed
    assert rewards is not None
    # 0 and 1, divided by their deviation .5.
    torch.testing.assert_close(rewards.team, torch.tensor([[0.0], [2.0]]))
    other = RewardLearner(constant_reward(), "", RewardConfig(), 10, threads=1, device=CPU)
    other.load_state_dict(learner.state_dict())
    again = [
        each.rollout_rewards(steps, done, informed=True, episodes=equal)[0]
        for each in (learner, other)
    ]
    assert again[0] is not None
    assert again[1] is not None
    assert torch.equal(again[0].team, again[1].team)
