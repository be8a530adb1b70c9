"""RUDDER's loss and rewards, numbers by hand.

Axes: M episodes, L steps.
"""

import dataclasses
from typing import Any

import pytest
import torch

from marl.config import RewardConfig
from marl.config.schema import SequenceConfig
from marl.data.types import EpisodeBatch, Rewards
from marl.rewards.rudder import RudderLoss, differences
from tests.reward_models import batch_of


def two_episodes(returns: list[float]) -> EpisodeBatch:
    """Return an episode of two steps and one of three, all of them, of returns of deviation 2."""
    batch = batch_of([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]], [2, 3], returns=returns)
    return dataclasses.replace(batch, return_scale=2.0)


def loss_of(returns: list[float], prediction_weight: float = 0.5, **options: Any) -> float:
    """Return the loss where episodes have at most 10 steps.

    With alpha 10 predictions are the rewards' sums so far: 1, 3 and 2, 6, 3.
    """
    team = torch.tensor([[1.0, 2.0, 50.0], [2.0, 4.0, -3.0]])
    sequence = SequenceConfig(prediction_weight=prediction_weight)
    loss = RudderLoss(RewardConfig(sequence=sequence, **options), 10)
    return float(loss(Rewards(team=team), two_episodes(returns))[0])


def test_rewards_are_differences_of_predictions() -> None:
    predictions = torch.tensor([[2.0, 5.0, 4.0]])
    assert differences(predictions).tolist() == [[2.0, 3.0, -1.0]]


def test_the_loss_by_hand() -> None:
    # Targets 4 / 2 = 2 and 8 / 2 = 4. Last predictions miss them by 1 and -1: mean square 1. All
    # of them by -1, 1: mean square 1; by -2, 2, -1: mean square 3.
    assert loss_of([4.0, 8.0], prediction_weight=0.0) == pytest.approx(1.0)
    assert loss_of([4.0, 8.0], prediction_weight=0.5) == pytest.approx(1.0 + 0.5 * (1.0 + 3.0) / 2)
    # Of the second one alone: 1 + .5 * 3.
    assert loss_of([torch.nan, 8.0]) == pytest.approx(2.5)
    # alpha times the mean so far is 5, 15 and 20/3, 20, 10; targets are 2 * 10/2 and 4 * 10/3.
    squares = (5 - 10) ** 2 + (15 - 10) ** 2, sum((x - 40 / 3) ** 2 for x in (20 / 3, 20, 10))
    expected = (25 + 100 / 9) / 2 + 0.5 * (squares[0] / 2 + squares[1] / 3) / 2
    assert loss_of([4.0, 8.0], length_normalised=True) == pytest.approx(expected)
