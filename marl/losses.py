"""PPO's losses.

Axes: B rows, N agents; ``*L`` any leading axes.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from marl.numerics import masked_mean


def clipped_policy_loss(
    log_probs: Float[Tensor, "*B N"],
    old_log_probs: Float[Tensor, "*B N"],
    advantages: Float[Tensor, "*B N"],
    clip_coef: float,
) -> tuple[Float[Tensor, "*B N"], Float[Tensor, "*B N"]]:
    """Return PPO's clipped surrogate loss (Schulman et al. 2017, eq. 7) and the log-ratio."""
    log_ratio = log_probs - old_log_probs
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1.0 - clip_coef, 1.0 + clip_coef)
    return -torch.minimum(ratio * advantages, clipped * advantages), log_ratio


def clipped_value_loss(
    values: Float[Tensor, "*L"],
    old_values: Float[Tensor, "*L"],
    targets: Float[Tensor, "*L"],
    clip: float,
) -> Float[Tensor, "*L"]:
    """Return the larger of the plain and the clipped squared error, all in normalised units."""
    loss = (values - targets) ** 2
    if clip == 0.0:
        return 0.5 * loss
    near = old_values + (values - old_values).clamp(-clip, clip)
    return 0.5 * torch.maximum(loss, (near - targets) ** 2)


@torch.no_grad()
def policy_metrics(
    loss: Tensor, log_ratio: Tensor, alive: Tensor | None, clip_coef: float
) -> Tensor:
    """Return loss, approximate KL (http://joschu.net/blog/kl-approx.html) and clipped share."""
    ratio = log_ratio.exp()
    kl = masked_mean(ratio - 1.0 - log_ratio, alive)
    clipped = ((ratio - 1.0).abs() > clip_coef).to(ratio.dtype)
    return torch.stack((loss, kl, masked_mean(clipped, alive)))
