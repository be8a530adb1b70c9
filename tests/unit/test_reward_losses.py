"""Losses of the implicit reward: fixed points and numbers by hand.

Axes: M episodes, K steps, B pairs.
"""

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from marl.config import RewardConfig
from marl.data.types import Rewards
from marl.rewards.losses import (
    PreferenceLoss,
    RegressionLoss,
    SumOfLosses,
    bradley_terry_loss,
    episode_scores,
    expectile_loss,
    gumbel_loss,
    preference_accuracy,
    preference_logits,
    soft_value_loss,
    split_penalty,
)
from tests.reward_models import batch_of


def minimiser(loss: Callable[[Tensor], Tensor]) -> float:
    """Return the scalar v that minimises a smooth convex loss."""
    v = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [v],
        max_iter=200,
        tolerance_grad=1e-12,
        tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(v)
        value.backward()
        return value

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return float(v.detach())


PROBABILITIES = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)


UTILITIES = torch.tensor([1.0, -1.0, 2.0], dtype=torch.float64)


@pytest.mark.parametrize("beta", [0.5, 1.0, 3.0])
def test_the_gumbel_loss_is_least_at_the_soft_value(beta: float) -> None:
    found = minimiser(
        lambda v: (PROBABILITIES * gumbel_loss(UTILITIES, v.expand(3), beta, 50.0)).sum()
    )
    expected = beta * math.log(float((PROBABILITIES * (UTILITIES / beta).exp()).sum()))
    assert found == pytest.approx(expected, abs=1e-5)


def test_the_gumbel_loss_is_tangent_beyond_the_clip() -> None:
    # At z = 5 with clip 2: e^2 (1 + 5 - 2) - 5 - 1 and slope in z e^2 - 1, so in v -(e^2 - 1).
    v = torch.zeros((), requires_grad=True)
    loss = gumbel_loss(torch.tensor(5.0), v, 1.0, 2.0)
    loss.backward()
    assert loss.item() == pytest.approx(math.exp(2) * 4 - 6, rel=1e-6)
    assert v.grad is not None
    assert float(v.grad) == pytest.approx(1 - math.exp(2), rel=1e-6)


def test_the_expectile_loss_is_least_at_the_expectile() -> None:
    # Two equally likely values 0 and 1 at level tau: tau (1 - v) = (1 - tau) v gives v = tau.
    q = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert minimiser(lambda v: expectile_loss(q, v.expand(2), 0.7).sum()) == pytest.approx(0.7)


def test_the_soft_loss_is_least_at_the_entropic_mean() -> None:
    # v = E_pi [q - beta log pi], here with pi the distribution above and beta 2.
    log_probs = PROBABILITIES.log()
    found = minimiser(
        lambda v: (PROBABILITIES * soft_value_loss(UTILITIES, v.expand(3), log_probs, 2.0)).sum()
    )
    expected = float((PROBABILITIES * (UTILITIES - 2.0 * log_probs)).sum())
    assert found == pytest.approx(expected, abs=1e-6)


REWARDS = torch.tensor([[1.0, 2.0, 100.0], [2.0, 4.0, 6.0]])


def test_preference_logits_by_hand() -> None:
    # alpha 10, T_max 20: S_1 = 10 / 20 (1 + 2) = 1.5 (padding weighs 0); four steps estimated
    # from three drawn weigh 1.5 each: S_2 = .5 * 1.5 * 12 = 9. The pairs (0, 1), (1, 0).
    batch = batch_of(
        [[1.0, 1.0, 0.0], [1.5, 1.5, 1.5]], [2, 4], first=[0, 1], second=[1, 0], labels=[1.0, 0.0]
    )
    logits = preference_logits(REWARDS, batch, RewardConfig(alpha=10.0), 20)
    assert logits.tolist() == [-7.5, 7.5]


def test_length_normalised_logits_by_hand() -> None:
    # alpha times the mean reward: 10 * 3 / 2 = 15 and 10 * 18 / 4 = 45.
    batch = batch_of([[1.0, 1.0, 0.0], [1.5, 1.5, 1.5]], [2, 4])
    config = RewardConfig(alpha=10.0, length_normalised=True)
    assert preference_logits(REWARDS, batch, config, 20).tolist() == [-30.0]


def test_bradley_terry_loss_by_hand() -> None:
    # sigmoid(log 3) = 3/4: -log 3/4 if the first is preferred, -log 1/4 if the second; at a tie
    # the mean of both.
    logits = torch.full((1,), math.log(3.0))
    for label, expected in (
        (1.0, -math.log(0.75)),
        (0.0, -math.log(0.25)),
        (0.5, -0.5 * (math.log(0.75) + math.log(0.25))),
    ):
        loss = bradley_terry_loss(logits, torch.tensor([label]))
        assert float(loss) == pytest.approx(expected, rel=1e-6)


def test_the_preference_loss_and_its_metrics_by_hand() -> None:
    # alpha / T_max = 1: scores 3, 4 and 4 + log 3 of single steps. The first pair has logit -1
    # and is a tie, the second log 3 of which the first is preferred by 3/4. Loss of the tie:
    # (log(1 + e^-1) + log(1 + e)) / 2; of the other: -3/4 log 3/4 - 1/4 log 1/4.
    rewards = Rewards(team=torch.tensor([[3.0], [4.0], [4.0 + math.log(3.0)]]))
    batch = batch_of([[1.0]] * 3, [1] * 3, first=[0, 2], second=[1, 1], labels=[0.5, 0.75])
    tie = 0.5 * (math.log(1.0 + math.exp(-1.0)) + math.log(1.0 + math.e))
    other = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    expected = pytest.approx(0.5 * (tie + other), rel=1e-6)
    loss, metrics = PreferenceLoss(RewardConfig(preference_weight=3.0), 10)(rewards, batch)
    assert float(loss) / 3.0 == expected
    assert float(metrics["preference/loss"]) == expected
    assert float(metrics["preference/ties"]) == 0.5
    found = PreferenceLoss(RewardConfig(), 10).evaluate(rewards, batch)
    assert found == {"preference/accuracy": 1.0, "preference/held_out_loss": expected}


def test_a_tie_pulls_the_scores_together() -> None:
    logits = torch.tensor([2.0], requires_grad=True)
    bradley_terry_loss(logits, torch.tensor([0.5])).backward()
    assert logits.grad is not None
    assert float(logits.grad) > 0


def test_accuracy_ignores_ties() -> None:
    logits = torch.tensor([1.0, -1.0, 1.0, 1.0])
    labels = torch.tensor([1.0, 0.8, 0.1, 0.5])  # right, wrong, wrong, tie
    assert float(preference_accuracy(logits, labels)) == pytest.approx(1 / 3)
    assert preference_accuracy(logits[3:], labels[3:]).isnan()


def test_the_split_penalty_by_hand() -> None:
    # Two agents, two episodes: 1 and 3 are each 1 from their mean, 2 and 2 are alike.
    # 1/2 ((1 + 1) + 0) = 1.
    assert float(split_penalty(torch.tensor([[1.0, 2.0], [3.0, 2.0]]))) == 1.0
    # Three agents: 1, 2, 0 around 1 and 3, -2, 0 around 1/3: (2 + 114 / 9) / 2.
    scores = torch.tensor([[1.0, 3.0], [2.0, -2.0], [0.0, 0.0]])
    assert float(split_penalty(scores)) == pytest.approx(22 / 3)


def test_scores_of_every_agent_by_hand() -> None:
    # As above for an agent paid REWARDS: 1.5 and 9; for one paid nothing: 0.
    batch = batch_of([[1.0, 1.0, 0.0], [1.5, 1.5, 1.5]], [2, 4])
    rewards = torch.stack((REWARDS, torch.zeros_like(REWARDS)))
    scores = episode_scores(
        rewards, batch.step_weights, batch.lengths, RewardConfig(alpha=10.0), 20
    )
    assert scores.tolist() == [[1.5, 9.0], [0.0, 0.0]]


@pytest.mark.parametrize(
    ("lengths", "length_normalised", "moves_by"),
    [
        # S = 10 / 8 sum R: episodes of 4 and 4 steps gain 5 each from a constant of 1, those of 4
        # and 2 steps 5 and 2.5. Per step, S = 10 mean R, both gain 10 whatever their lengths.
        ([4, 4], False, 0.0),
        ([4, 2], False, 2.5),
        ([4, 2], True, 0.0),
    ],
)
def test_preferences_pin_the_mean_reward_down_by_unequal_lengths_only(
    lengths: list[int], length_normalised: bool, moves_by: float
) -> None:
    """What they leave open, the policy must not take for a reason to end an episode."""
    weights = [[1.0] * length + [0.0] * (4 - length) for length in lengths]
    batch = batch_of(weights, lengths)
    config = RewardConfig(alpha=10.0, length_normalised=length_normalised)
    rewards = torch.linspace(-1.0, 1.0, 8).view(2, 4)
    before, after = (
        preference_logits(rewards + constant, batch, config, 8) for constant in (0.0, 1.0)
    )
    assert (after - before).item() == pytest.approx(moves_by, abs=1e-5)


def test_ties_are_counted_and_metrics_hold_no_graph() -> None:
    labels = {"first": [0] * 4, "second": [1] * 4, "labels": [1.0, 0.5, 0.0, 0.2]}
    batch = batch_of([[1.0, 1.0, 0.0], [1.5, 1.5, 1.5]], [2, 4], returns=[1.0, 2.0], **labels)
    rewards = Rewards(team=REWARDS.clone().requires_grad_())
    for kind in (PreferenceLoss, RegressionLoss, SumOfLosses):
        loss, metrics = kind(RewardConfig(), 10)(rewards, batch)
        assert loss.requires_grad
        assert not any(value.requires_grad for value in metrics.values())
        assert metrics.get("preference/ties", torch.tensor(0.25)) == 0.25


def test_an_equal_score_counts_as_a_preference_for_the_second() -> None:
    logits = torch.tensor([0.0, 0.0, 0.5, 0.5])
    labels = torch.tensor([0.0, 1.0, 1.0, 0.0])  # right, wrong, right, wrong
    for index, right in enumerate([1.0, 0.0, 1.0, 0.0]):
        row = slice(index, index + 1)
        assert float(preference_accuracy(logits[row], labels[row])) == right


def test_held_out_sums_are_weighted() -> None:
    # Weighted sums are 3, 16 and 6; the last reward of the first episode is padding.
    weights = [[1.0, 1.0, 0.0], [4 / 3, 4 / 3, 4 / 3], [2.0, 1.0, 0.0]]
    rewards = Rewards(team=torch.cat((REWARDS, torch.tensor([[2.0, 2.0, -50.0]]))))
    batch = batch_of(weights, [2, 4, 3], returns=[3.0, 16.0, 6.0])
    metrics = RegressionLoss(RewardConfig(), 10).evaluate(rewards, batch)
    assert metrics["regression/correlation"] == pytest.approx(1.0)
    assert metrics["regression/held_out_loss"] == pytest.approx(0.0, abs=1e-9)
    # Both losses tell of both; without a pair there is nothing to say of preferences.
    both = SumOfLosses(RewardConfig(), 10).evaluate(rewards, batch)
    own = PreferenceLoss(RewardConfig(), 10).evaluate(rewards, batch)
    assert both == metrics | own
    none = torch.zeros(0, dtype=torch.int64)
    silent = dataclasses.replace(batch, first=none, second=none, labels=torch.zeros(0))
    assert SumOfLosses(RewardConfig(), 10).evaluate(rewards, silent) == metrics


def test_utilities_are_constants_to_every_value_loss() -> None:
    q, v = torch.tensor([1.0, -2.0], requires_grad=True), torch.zeros(2, requires_grad=True)
    for loss in (
        gumbel_loss(q, v, 1.0, 5.0),
        expectile_loss(q, v, 0.7),
        soft_value_loss(q, v, torch.tensor([-1.0, -1.0]), 1.0),
    ):
        loss.sum().backward()
    assert q.grad is None
    assert v.grad is not None
