"""RUDDER: rewards are what each step changes in the prediction of the return.

Axes: M episodes, L steps, N agents.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from envs import EnvSpec
from marl.config import RewardConfig
from marl.data.types import EpisodeBatch, Rewards
from marl.nn.layers import linear, masked_mean
from marl.nn.normalisation import TeamNorm
from marl.rewards.losses import RegressionLoss
from marl.rewards.sequence import SequenceReward, Sequences


class RudderReward(SequenceReward):
    """R_t = g_t - g_{t-1}, g_t an LSTM's prediction of the return after t steps, g_{-1} = 0.

    Arjona-Medina et al. 2019 (arXiv 1806.07857), section 3: return decomposition by an LSTM and
    contribution analysis by differences of predictions. It reads all agents at once and splits
    nothing among them. When an episode has ended, what the last prediction lacks to the return is
    added in equal parts to all its steps, so that the rewards add up to the return (as in the
    authors' tutorial); steps paid in an earlier rollout miss their part.
    """

    longest = 2000

    def __init__(
        self,
        spec: EnvSpec,
        config: RewardConfig,
        gamma: float,
        norm: TeamNorm,
        generator: torch.Generator,
    ) -> None:
        super().__init__(spec, config, norm)
        width = config.hidden_sizes[0]
        self.lstm = nn.LSTM(spec.num_agents * self.input_size, width, batch_first=True)
        for weight in self.lstm.parameters():
            nn.init.uniform_(weight, -1.0, 1.0, generator=generator)
            weight.data.div_(math.sqrt(width))  # PyTorch's own, from the run's generator
        self.prediction = linear(width, 1, 0.1, generator)
        self.unit = spec.max_steps / config.alpha  # of the return's deviation, in units of R

    def read(self, episodes: Sequences) -> Rewards:
        """Return the differences of successive predictions."""
        hidden, _ = self.lstm(self.inputs(episodes).flatten(-2))
        return Rewards(team=self.unit * differences(self.prediction(hidden).squeeze(-1)))

    def paid(
        self,
        rewards: Rewards,
        episodes: Sequences,
        returns: Float[Tensor, "M"],
        least_return: float,
    ) -> Rewards:
        """Return the rewards, those of an ended episode with the error of its prediction."""
        lengths = episodes.present.sum(dim=-1)
        sums = (rewards.team * episodes.present).sum(dim=-1)
        errors = (self.unit * returns - sums).nan_to_num() / lengths
        return Rewards(team=rewards.team + errors.unsqueeze(-1))


def differences(predictions: Float[Tensor, "M L"]) -> Float[Tensor, "M L"]:
    """Return g_t - g_{t-1}, with g_{-1} = 0."""
    return predictions - nn.functional.pad(predictions, (1, 0))[:, :-1]


class RudderLoss(RegressionLoss):
    """Squared error of the last prediction to the return, plus that of all predictions.

        (g_T - G)^2 + c / T sum_t (g_t - G)^2

    in units of the returns' deviation. The second part, with c = ``prediction_weight``, lets the
    prediction change as early as the return is known.
    """

    def __call__(self, rewards: Rewards, batch: EpisodeBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss, and its first part as metric."""
        loss, metrics = super().__call__(rewards, batch)
        config = self.config
        sums = (batch.step_weights * rewards.team).cumsum(dim=-1)
        steps = batch.lengths.unsqueeze(-1) if config.length_normalised else self.max_steps
        targets, known = self.targets(batch)
        errors = (config.alpha * sums / steps - targets.unsqueeze(-1)) ** 2
        errors = (errors * batch.step_weights).sum(dim=-1) / batch.lengths
        error = masked_mean(errors, known)
        error = error if batch.shares is None else error * batch.shares.returns
        return loss + config.sequence.prediction_weight * error, metrics
