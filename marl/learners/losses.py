"""PPO's losses and, beside each, its slope: what autograd would find for the loss of one row.

Axes: N agents; ``*B`` the rows of a minibatch, ``*L`` any leading axes.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from marl.nn.layers import masked_mean


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


def clipped_policy_slope(
    log_ratio: Float[Tensor, "*B N"], advantages: Float[Tensor, "*B N"], clip_coef: float
) -> Float[Tensor, "*B N"]:
    """Return the loss's derivative by the log-probability: -ratio A, or 0 where it is clipped."""
    ratio = log_ratio.exp()
    gain = ratio * advantages
    clipped = ratio.clamp_(1.0 - clip_coef, 1.0 + clip_coef).mul_(advantages)
    return gain.mul_(gain <= clipped).neg_()


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


def clipped_value_slope(
    values: Float[Tensor, "*L"],
    old_values: Float[Tensor, "*L"],
    targets: Float[Tensor, "*L"],
    clip: float,
) -> Float[Tensor, "*L"]:
    """Return the loss's derivative by the value: the error, or 0 where the clipped one is larger.

    Within the clip range both errors are the same.
    """
    error = values - targets
    if clip == 0.0:
        return error
    change = values - old_values
    beyond = old_values + change.clamp(-clip, clip) - targets
    return error.mul_((change.abs() <= clip) | (error.abs() > beyond.abs()))


@torch.no_grad()
def policy_metrics(
    log_ratio: Float[Tensor, "*B N"], alive: Bool[Tensor, "*B N"] | None, clip_coef: float
) -> dict[str, Tensor]:
    """Return approximate KL (http://joschu.net/blog/kl-approx.html) and the clipped share."""
    change = log_ratio.exp().sub_(1.0)
    clipped = (change.abs() > clip_coef).to(change.dtype)
    return {
        "policy/kl": masked_mean(change.sub_(log_ratio), alive),
        "policy/clip_fraction": masked_mean(clipped, alive),
    }
