"""Mixers: how agents' utilities add up to the team's value.

Axes: N agents, S state features, H units of memory; ``*L`` any leading axes.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from marl.networks import mlp

_ONE = math.log(math.e - 1.0)
"""softplus(_ONE) = 1: mixers start as a plain sum."""


@dataclass(frozen=True, kw_only=True)
class Mixed:
    """A team value and, for a linear mixer, what it is made of."""

    total: Float[Tensor, "*L"]
    utilities: Float[Tensor, "*L N"]
    """What was mixed."""
    weights: Float[Tensor, "*L N"]
    """w_i(s) >= 0; ones where the mixer is not linear."""
    bias: Float[Tensor, "*L"]
    """b(s)."""
    memory: Float[Tensor, "*L N H"] | None = None
    """What the utilities remember after each step. None: they have no memory."""


class LinearMixer(nn.Module):
    """Q_tot = sum_i w_i(s) q_i + b(s) with w_i >= 0 (O-MAPL, arXiv 2501.18944)."""

    def __init__(
        self, state_size: int, num_agents: int, hidden: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.hypernetwork = mlp(
            state_size, (hidden,), num_agents + 1, output_gain=0.1, generator=generator
        )

    def forward(self, state: Float[Tensor, "*L S"], utilities: Float[Tensor, "*L N"]) -> Mixed:
        out = self.hypernetwork(state)
        weights = nn.functional.softplus(out[..., :-1] + _ONE)
        bias = out[..., -1]
        total = (weights * utilities).sum(dim=-1) + bias
        return Mixed(total=total, utilities=utilities, weights=weights, bias=bias)


class TwoLayerMixer(nn.Module):
    """A monotone two-layer network with state-dependent weights (QMIX, arXiv 1803.11485)."""

    def __init__(
        self, state_size: int, num_agents: int, hidden: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.units = 32
        outputs = self.units * (num_agents + 2) + 1
        self.hypernetwork = mlp(
            state_size, (hidden,), outputs, output_gain=0.1, generator=generator
        )

    def forward(self, state: Float[Tensor, "*L S"], utilities: Float[Tensor, "*L N"]) -> Mixed:
        units, agents = self.units, utilities.shape[-1]
        out = self.hypernetwork(state)
        first, bias, second, last = out.split((units * agents, units, units, 1), dim=-1)
        first = nn.functional.softplus(first + _ONE).unflatten(-1, (agents, units)) / agents
        second = nn.functional.softplus(second + _ONE) / math.sqrt(units)
        layer = nn.functional.elu((utilities.unsqueeze(-1) * first).sum(dim=-2) + bias)
        total = (layer * second).sum(dim=-1) + last.squeeze(-1)
        ones, zero = torch.ones_like(utilities), torch.zeros_like(total)
        return Mixed(total=total, utilities=utilities, weights=ones, bias=zero)
