"""The losses of the implicit reward.

Axes: M episodes, K sampled steps, B pairs, N agents; ``*L`` any leading axes.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from marl.config import RewardConfig
from marl.data.types import EpisodeBatch


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


def split_penalty(local_scores: Float[Tensor, "N M"]) -> Tensor:
    """Return the mean over episodes of sum_i (S_i - S_bar)^2, S_i the score of r_i alone.

    Preferences tell only about S = sum_i S_i. Scores of whole episodes, not rewards, are kept
    alike: what an agent's own action is worth at a step stays its own.
    """
    mean = local_scores.mean(dim=0, keepdim=True)
    return ((local_scores - mean) ** 2).sum(dim=0).mean()


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
