"""The losses of learned rewards, from the score of an episode to the loss of V.

A `RewardLoss` fits rewards to what is known of whole episodes: which one is preferred
(`PreferenceLoss`), what each returned (`RegressionLoss`), or both (`SumOfLosses`). Another is one
class here, or in a module of its own, and one line of `marl.config.presets.REWARD_LOSSES`. Any of
them can be tied to a scale (`marl.rewards.calibration`).

Axes: M episodes, K sampled steps, B pairs, N agents; ``*L`` any leading axes.
"""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from marl.config import RewardConfig
from marl.data.types import EpisodeBatch, Rewards
from marl.nn.layers import correlation, masked_mean


@runtime_checkable
class RewardLoss(Protocol):
    """A loss of a reward model's outputs on a batch; built as ``Class(config, max_steps)``.

    Where several processes train, each has a batch of its own, and the mean of their losses is
    minimised; `EpisodeBatch.shares` makes it the mean over all pairs or episodes.
    """

    def __call__(self, rewards: Rewards, batch: EpisodeBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss on a batch to train on, and metrics of it without gradient."""
        ...

    def evaluate(self, rewards: Rewards, batch: EpisodeBatch) -> dict[str, float]:
        """Return metrics of a held-out batch."""
        ...


def episode_scores(
    rewards: Float[Tensor, "*N M K"],
    step_weights: Float[Tensor, "M K"],
    lengths: Int64[Tensor, "M"],
    config: RewardConfig,
    max_steps: int,
) -> Float[Tensor, "*N M"]:
    """Return S = (alpha / T_max) * sum_t R_t of each episode, or S_i of each agent's r_i.

    The sum is estimated from the sampled steps by their weights; with
    ``length_normalised`` each episode's own length takes the place of T_max.
    """
    sums = (step_weights * rewards).sum(dim=-1)
    if config.length_normalised:
        return config.alpha * sums / lengths
    return config.alpha / max_steps * sums


class PreferenceLoss:
    """Bradley-Terry on the answered pairs: BCE(S(tau_1) - S(tau_2), y), times its weight."""

    def __init__(self, config: RewardConfig, max_steps: int) -> None:
        self.config = config
        self.max_steps = max_steps

    def __call__(self, rewards: Rewards, batch: EpisodeBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss, and it without its weight and the share of ties as metrics.

        Zero, and NaN as metrics, without an answered pair.
        """
        logits = preference_logits(rewards.team, batch, self.config, self.max_steps)
        if len(batch.labels) == 0:
            unknown = torch.full((), torch.nan, device=logits.device)
            return logits.sum(), {"preference/loss": unknown, "preference/ties": unknown}
        loss = bradley_terry_loss(logits, batch.labels)
        ties = (batch.labels == 0.5).to(loss.dtype).mean()
        metrics = {"preference/loss": loss.detach(), "preference/ties": ties}
        loss = self.config.preference_weight * loss
        return (loss if batch.shares is None else loss * batch.shares.pairs), metrics

    def evaluate(self, rewards: Rewards, batch: EpisodeBatch) -> dict[str, float]:
        """Return accuracy and loss on pairs that were never trained on; nothing without a pair."""
        if len(batch.labels) == 0:
            return {}
        logits = preference_logits(rewards.team, batch, self.config, self.max_steps)
        return {
            "preference/accuracy": float(preference_accuracy(logits, batch.labels)),
            "preference/held_out_loss": float(bradley_terry_loss(logits, batch.labels)),
        }


def preference_logits(
    team_rewards: Float[Tensor, "M K"],
    batch: EpisodeBatch,
    config: RewardConfig,
    max_steps: int,
) -> Float[Tensor, "B"]:
    """Return S(tau_1) - S(tau_2) of every pair."""
    scores = episode_scores(team_rewards, batch.step_weights, batch.lengths, config, max_steps)
    return scores[batch.first] - scores[batch.second]


def bradley_terry_loss(logits: Float[Tensor, "B"], labels: Float[Tensor, "B"]) -> Tensor:
    """Return the cross-entropy of P(tau_1 > tau_2) = sigmoid(S(tau_1) - S(tau_2)).

    A tie (label 0.5) pulls the two scores together.
    """
    return nn.functional.binary_cross_entropy_with_logits(logits, labels)


def preference_accuracy(logits: Float[Tensor, "B"], labels: Float[Tensor, "B"]) -> Tensor:
    """Return the share of decided pairs whose order the logits have right; NaN if all tie."""
    decided = labels != 0.5
    return ((logits > 0) == (labels > 0.5))[decided].to(torch.float32).mean()


class RegressionLoss:
    """Randomised return decomposition (Ren et al. 2022, arXiv 2111.13485).

        L = mean over episodes of (S(tau) - G(tau) / sd(G))^2,   S = (alpha / T_max) (T/K) sum_k R_k

    with K of the T steps sampled: the paper's squared error of the estimated sum to the return G,
    on a scale in which scores, as in the preference loss, are of order one in every task. sd(G) is
    the deviation of the returns of all kept episodes; their mean is not shifted. With
    ``length_normalised``, alpha / T and G T_max / T take the places of alpha / T_max and G.

    Sampling adds the variance of S to the loss. ``unbiased_regression`` subtracts its estimate,
    (alpha / T_max)^2 T^2 (1 - K/T) Var_K(R) / K, for steps drawn without replacement.
    """

    def __init__(self, config: RewardConfig, max_steps: int) -> None:
        self.config = config
        self.max_steps = max_steps

    def __call__(self, rewards: Rewards, batch: EpisodeBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss, also as metric."""
        loss = self._loss(rewards, batch)
        metrics = {"regression/loss": loss.detach()}
        return (loss if batch.shares is None else loss * batch.shares.returns), metrics

    def evaluate(self, rewards: Rewards, batch: EpisodeBatch) -> dict[str, float]:
        """Return the loss on held-out episodes, and their sums' correlation with the returns."""
        sums = (batch.step_weights * rewards.team).sum(dim=-1)
        known = ~batch.returns.isnan()
        return {
            "regression/held_out_loss": float(self._loss(rewards, batch)),
            "regression/correlation": float(correlation(sums, batch.returns, known)),
        }

    def _loss(self, rewards: Rewards, batch: EpisodeBatch) -> Tensor:
        """Return the mean over the episodes whose return is known; zero where none is."""
        config, max_steps, lengths = self.config, self.max_steps, batch.lengths
        scores = episode_scores(rewards.team, batch.step_weights, lengths, config, max_steps)
        targets, known = self.targets(batch)
        errors = (scores - targets) ** 2
        if config.unbiased_regression:
            errors = errors - score_variance(rewards.team, batch, config, max_steps)
        return masked_mean(errors, known)

    def targets(self, batch: EpisodeBatch) -> tuple[Float[Tensor, "M"], Bool[Tensor, "M"]]:
        """Return what the scores should be, G / sd(G), and where it is known; 0 elsewhere."""
        targets = batch.returns / batch.return_scale
        if self.config.length_normalised:
            targets = targets * self.max_steps / batch.lengths
        return targets.nan_to_num(), ~targets.isnan()


def score_variance(
    team_rewards: Float[Tensor, "M K"],
    batch: EpisodeBatch,
    config: RewardConfig,
    max_steps: int,
) -> Float[Tensor, "M"]:
    """Return (alpha / T_max)^2 T^2 (1 - K/T) Var_K(R) / K, the variance of S over draws of steps.

    Unbiased for K >= 2 of the T steps drawn without replacement; zero where all T are there.
    """
    lengths, count = batch.lengths, batch.is_sampled.sum(dim=-1)
    mean = (team_rewards * batch.is_sampled).sum(dim=-1, keepdim=True) / count.unsqueeze(-1)
    squares = ((team_rewards - mean) ** 2 * batch.is_sampled).sum(dim=-1)
    variance = squares / (count - 1).clamp(min=1)
    factor = config.alpha * lengths / (lengths if config.length_normalised else max_steps)
    return factor**2 * (1.0 - count / lengths) * variance / count


class SumOfLosses:
    """`PreferenceLoss` plus `RegressionLoss`, each where the batch has what it reads."""

    def __init__(self, config: RewardConfig, max_steps: int) -> None:
        self.preference = PreferenceLoss(config, max_steps)
        self.regression = RegressionLoss(config, max_steps)

    def __call__(self, rewards: Rewards, batch: EpisodeBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the sum and the metrics of both; NaN for preferences without an answered pair."""
        loss, metrics = self.regression(rewards, batch)
        other, others = self.preference(rewards, batch)
        return loss + other, metrics | others

    def evaluate(self, rewards: Rewards, batch: EpisodeBatch) -> dict[str, float]:
        """Return the metrics of both."""
        return self.regression.evaluate(rewards, batch) | self.preference.evaluate(rewards, batch)


def split_penalty(local_scores: Float[Tensor, "N M"]) -> Tensor:
    """Return the mean over episodes of sum_i (S_i - S_bar)^2, S_i the score of r_i alone.

    Preferences and returns tell only about S = sum_i S_i. Scores of whole episodes, not rewards,
    are kept alike: what an agent's own action is worth at a step stays its own.
    """
    mean = local_scores.mean(dim=0, keepdim=True)
    return ((local_scores - mean) ** 2).sum(dim=0).mean()


def value_loss(
    q: Float[Tensor, "*L"],
    v: Float[Tensor, "*L"],
    config: RewardConfig,
    log_probs: Float[Tensor, "*L"] | None = None,
) -> Float[Tensor, "*L"]:
    """Return L_v of every entry in the form that ``reward.value_loss`` names; `q` is a constant.

    `log_probs` are those of the current policy's actions, at which ``soft`` takes `q`.
    """
    if log_probs is not None:
        return soft_value_loss(q, v, log_probs, config.beta)
    if config.value_loss == "expectile":
        return expectile_loss(q, v, config.expectile)
    return gumbel_loss(q, v, config.beta, config.exponent_clip)


def gumbel_loss(
    utilities: Float[Tensor, "*L"],
    values: Float[Tensor, "*L"],
    beta: float,
    exponent_clip: float,
) -> Float[Tensor, "*L"]:
    """Return exp(z) - z - 1 with z = (q - v) / beta ("extreme V", arXiv 2301.02328).

    Its minimum over v is the soft value beta log E exp(q / beta). Beyond `exponent_clip` the
    exponential goes on as its tangent, so the slope stays bounded and the loss convex.
    """
    z = (utilities.detach() - values) / beta
    near = z.clamp(max=exponent_clip)
    return near.exp() * (1.0 + z - near) - z - 1.0


def expectile_loss(
    utilities: Float[Tensor, "*L"], values: Float[Tensor, "*L"], level: float
) -> Float[Tensor, "*L"]:
    """Return |level - 1(q < v)| (q - v)^2, whose minimum is the expectile of q."""
    gap = utilities.detach() - values
    return torch.where(gap < 0, 1.0 - level, level) * gap**2


def soft_value_loss(
    utilities: Float[Tensor, "*L"],
    values: Float[Tensor, "*L"],
    log_probs: Float[Tensor, "*L"],
    beta: float,
) -> Float[Tensor, "*L"]:
    """Return the squared error to q - beta log pi at actions of the current policy.

    Its minimum is the soft value E_pi[q - beta log pi].
    """
    return 0.5 * (utilities.detach() - beta * log_probs - values) ** 2
