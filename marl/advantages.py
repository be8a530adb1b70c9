"""Advantages of one or several reward streams.

Axes: T time, E environments, N agents; ``*X`` is nothing for the team's stream and N for the
local ones.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def gae(
    rewards: Float[Tensor, "T E *X"],
    values: Float[Tensor, "T E *X"],
    next_values: Float[Tensor, "T E *X"],
    terminated: Bool[Tensor, "T E"],
    ends: Bool[Tensor, "T E *X"],
    gamma: float,
    gae_lambda: float,
) -> Float[Tensor, "T E *X"]:
    """Return generalised advantage estimates (Schulman et al. 2016, eq. 16).

    `next_values` belong to the state a step really led to, so a truncated episode bootstraps
    from its true final state and a terminated one from zero. `ends` are the steps behind which a
    stream stops: nothing that comes later is traced back to them. The recursion

        A_t = delta_t + c_t A_{t+1},   c_t = gamma lambda (1 - ends_t)

    is solved in log2(T) vectorised rounds: after round k, A_t sums the 2^k steps from t.
    """
    shape = (*terminated.shape, *([1] * (rewards.ndim - 2)))
    alive = (~terminated).view(shape).to(rewards.dtype)
    advantages = rewards + gamma * alive * next_values - values
    carry = gamma * gae_lambda * (~ends).to(rewards.dtype)
    steps = rewards.shape[0]
    shift = 1
    while shift < steps:
        advantages = torch.cat(
            (
                advantages[:-shift] + carry[:-shift] * advantages[shift:],
                advantages[-shift:],
            )
        )
        carry = torch.cat((carry[:-shift] * carry[shift:], torch.zeros_like(carry[-shift:])))
        shift *= 2
    return advantages


def standardise(
    advantages: Float[Tensor, "*L"], present: Bool[Tensor, "*L"] | None = None
) -> Float[Tensor, "*L"]:
    """Return advantages with mean 0 and deviation 1 over the rows that are present.

    Rows that are not present come back as zero.
    """
    if present is None:
        mean, std = advantages.mean(), advantages.std(correction=0)
        return (advantages - mean) / (std + 1e-8)
    count = present.sum().clamp(min=1)
    mean = advantages.where(present, torch.zeros_like(advantages)).sum() / count
    centred = (advantages - mean).where(present, torch.zeros_like(advantages))
    return centred / ((centred**2).sum() / count).sqrt().add(1e-8)


def dual_advantages(
    team: Float[Tensor, "T E"],
    local: Float[Tensor, "T E N"] | None,
    alive: Bool[Tensor, "T E N"] | None,
    num_agents: int,
    local_weight: float,
) -> Float[Tensor, "T E N"]:
    """Return omega * norm(A_i) + (1 - omega) * norm(A), the actors' advantage (IMAP).

    Without local advantages every agent gets norm(A). A stream of weight zero leaves no trace.
    """
    shared = standardise(team).unsqueeze(-1).expand(*team.shape, num_agents)
    if local is None or local_weight == 0.0:
        return shared
    own = standardise(local, alive)
    return own if local_weight == 1.0 else local_weight * own + (1.0 - local_weight) * shared
