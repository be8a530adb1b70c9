"""Rewards from demonstrations: what they are worth above what a policy does by itself.

Axes: M episodes, K sampled steps, B pairs; ``*L`` any leading axes.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from marl.config import ConfigError, RewardConfig
from marl.data.types import EpisodeBatch, Rewards
from marl.preferences.dataset import EpisodeArchive

MEASURED_PAIRS = 1000
"""Pairs of a demonstration and another episode that a fit is measured by."""


LEAST_REGULARISATION = 0.25
"""lambda in lambda mean(R^2) is at least this: what no demonstration does has no lowest reward."""


class DemonstrationLoss:
    """L = E_own[R] - E_demo[R - R^2 / 4], the mean over steps of each kind of episode.

    The largest difference is a chi-square divergence between what demonstrations and own episodes
    do (IQ-Learn, arXiv 2106.12142), reached at R = 2 (1 - p_own / p_demo). Where nothing is drawn
    at random the first mean is a constant; in other tasks demonstrations alone would not do.
    """

    def __call__(self, rewards: Rewards, batch: EpisodeBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss, also as metric."""
        shown = batch.demonstrations
        assert shown is not None, "the batch does not say which episodes are demonstrations"
        weights, reward = batch.step_weights, rewards.team
        of_demo = weights * shown.unsqueeze(-1)
        gain = weighted_mean(chi_square(reward), of_demo)
        loss = weighted_mean(reward, weights - of_demo) - gain
        return loss, {"demonstrations/loss": loss.detach()}

    def evaluate(self, rewards: Rewards, batch: EpisodeBatch) -> dict[str, float]:
        """Return the loss on held-out episodes."""
        return {"demonstrations/held_out_loss": float(self(rewards, batch)[0])}


def chi_square(u: Float[Tensor, "*L"]) -> Float[Tensor, "*L"]:
    """Return u - u^2 / 4."""
    return u - u**2 / 4.0


def weighted_mean(x: Float[Tensor, "*L"], weights: Float[Tensor, "*L"]) -> Tensor:
    """Return sum(weights x) / sum(weights); zero where all weights are."""
    return (weights * x).sum() / weights.sum().clamp(min=1e-9)


class DemonstrationBatches:
    """Batches of which one half are demonstrations and the other are not.

    For the measurement, a demonstration counts as preferred to any other episode.
    """

    num_skipped = num_orphaned = 0
    """There are no answers that could be left out."""

    def __init__(
        self,
        archive: EpisodeArchive,
        config: RewardConfig,
        generator: torch.Generator,
        where: str,
    ) -> None:
        """Raises `ConfigError`, which `where` begins, where one kind of episode is missing."""
        self.archive = archive
        self.config = config
        self.generator = generator
        self.sides = {held_out: self._side(held_out) for held_out in (False, True)}
        shown, own = self.sides[False]
        if len(shown) == 0:
            raise ConfigError(
                f"{where}: no episode to train on is marked as a demonstration; add some with "
                "demonstration = True, or mark those of a run by `marl export --demonstrations`"
            )
        if len(own) == 0:
            raise ConfigError(
                f"{where}: all episodes to train on are demonstrations; add some that a policy has "
                "played by itself, which the reward is to tell them from"
            )

    def _side(self, held_out: bool) -> tuple[Tensor, Tensor]:
        """Return the numbers of the demonstrations and of the other episodes of one side."""
        shown = self.archive.demonstrations(held_out=held_out)
        every = self.archive.available(held_out=held_out)
        return shown, every[~torch.isin(every, shown)]

    def batch(self, *, held_out: bool = False) -> EpisodeBatch | None:
        """Return M/2 random episodes of each kind at most; None if one kind is missing."""
        half = max(1, self.config.batch_episodes // 2)
        shown, own = (self._drawn(numbers, half) for numbers in self.sides[held_out])
        if len(shown) == 0 or len(own) == 0:
            return None
        numbers = torch.cat((shown, own))
        nothing = numbers.new_zeros(0)
        return self.archive.batch(
            numbers,
            self.config,
            self.generator,
            first=nothing,
            second=nothing,
            labels=torch.zeros(0, device=numbers.device),
            demonstrations=torch.arange(len(numbers), device=numbers.device) < len(shown),
        )

    def _drawn(self, numbers: Int64[Tensor, "M"], count: int) -> Int64[Tensor, "_"]:
        order = torch.randperm(len(numbers), generator=self.generator, device=numbers.device)
        return numbers[order[:count]]

    def pairs(
        self, *, held_out: bool
    ) -> tuple[Int64[Tensor, "B"], Int64[Tensor, "B"], Float[Tensor, "B"]]:
        """Return pairs of a demonstration and another episode, each labelled 1; random ones where
        there are more than `MEASURED_PAIRS`."""
        shown, own = self.sides[held_out]
        every = torch.arange(len(shown) * len(own), device=shown.device)
        if len(every) > MEASURED_PAIRS:
            every = every[self._drawn(every, MEASURED_PAIRS)]
        first, second = shown[every // max(1, len(own))], own[every % max(1, len(own))]
        return first, second, torch.ones(len(every), device=shown.device)
