"""Calibration: scores that also have a size, not only an order.

Preferences fix only differences of scores, and those of pairs that are labelled alike grow without
end. A calibrated loss adds a term that ties the scores to a scale:

    L + c C,    C = mean over episodes of (S - kappa z(G))^2                              return
                C = mean over pairs of [(S_1 - kappa (y - .5))^2 + (S_2 + kappa (y - .5))^2] / 2
                                                                                          label

with z(G) the return in standard deviations from the mean, both of all kept episodes, and y the
label P(first preferred). kappa, in nats, is what one deviation of the return is worth, so that of
two episodes that far apart the better one is preferred with probability sigmoid(kappa); or what
being preferred is worth. With kappa = 1 / beta the second form is Cal-DPO's (arXiv 2412.14516),
whose targets are +1 / (2 beta) for the preferred and -1 / (2 beta) for the other. They are meant
for episodes that stand in one pair each: the targets of an episode that wins some pairs and loses
others cancel, and its score is drawn to kappa times its share of wins less a half.

Axes: M episodes, B pairs.
"""

import torch
from torch import Tensor

from marl.config import RewardConfig
from marl.data.types import EpisodeBatch, Rewards
from marl.nn.layers import masked_mean
from marl.rewards.losses import RewardLoss, episode_scores, score_variance


class CalibratedLoss:
    """Another loss plus c C."""

    def __init__(self, loss: RewardLoss, config: RewardConfig, max_steps: int) -> None:
        self.loss = loss
        self.config = config
        self.max_steps = max_steps
        self.error = return_error if config.calibrate_to == "return" else label_error

    def __call__(self, rewards: Rewards, batch: EpisodeBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the sum, and the other loss's metrics and C."""
        loss, metrics = self.loss(rewards, batch)
        error = self.error(rewards, batch, self.config, self.max_steps)
        metrics = metrics | {"calibration/loss": error.detach()}
        if batch.shares is not None:
            by_return = self.config.calibrate_to == "return"
            error = error * (batch.shares.returns if by_return else batch.shares.pairs)
        return loss + self.config.calibration * error, metrics

    def evaluate(self, rewards: Rewards, batch: EpisodeBatch) -> dict[str, float]:
        """Return the other loss's metrics and C on held-out episodes."""
        error = self.error(rewards, batch, self.config, self.max_steps)
        return self.loss.evaluate(rewards, batch) | {"calibration/held_out_loss": float(error)}


def return_error(
    rewards: Rewards, batch: EpisodeBatch, config: RewardConfig, max_steps: int
) -> Tensor:
    """Return the mean of (S - kappa z(G))^2 over episodes of known return; zero if none is known.

    ``unbiased_regression`` subtracts the variance that sampling steps adds.
    """
    scores = episode_scores(rewards.team, batch.step_weights, batch.lengths, config, max_steps)
    targets = config.calibration_scale * (batch.returns - batch.return_mean) / batch.return_scale
    known = ~targets.isnan()
    errors = (scores - targets.nan_to_num()) ** 2
    if config.unbiased_regression:
        errors = errors - score_variance(rewards.team, batch, config, max_steps)
    return masked_mean(errors, known)


def label_error(
    rewards: Rewards, batch: EpisodeBatch, config: RewardConfig, max_steps: int
) -> Tensor:
    """Return the mean of C over the answered pairs; zero if there is none."""
    scores = episode_scores(rewards.team, batch.step_weights, batch.lengths, config, max_steps)
    targets = config.calibration_scale * (batch.labels - 0.5)
    errors = 0.5 * ((scores[batch.first] - targets) ** 2 + (scores[batch.second] + targets) ** 2)
    return masked_mean(errors, torch.ones_like(errors, dtype=torch.bool))
