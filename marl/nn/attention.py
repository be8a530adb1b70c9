"""Attention over the steps of an episode, over the agents of a step, and over coalitions of agents.

Axes: L positions (steps or agents), N agents, C coalitions, W width, H heads, D features of a head;
``*B`` any leading axes.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from marl.nn.layers import linear


class SelfAttention(nn.Module):
    """Multi-head attention, softmax(Q K^T / sqrt(D)) V (Vaswani et al. 2017, eq. 1)."""

    def __init__(self, width: int, heads: int, generator: torch.Generator) -> None:
        super().__init__()
        self.heads = heads
        self.inputs = nn.ModuleList(linear(width, width, 1.0, generator) for _ in range(3))
        self.output = linear(width, width, 1.0, generator)

    def forward(
        self,
        x: Float[Tensor, "*B L W"],
        allowed: Bool[Tensor, "*B L L"] | None = None,
        *,
        is_causal: bool = False,
    ) -> Float[Tensor, "*B L W"]:
        """Return what each position gathers from those it is `allowed` to see (None: all).

        Causal: from itself and those before.
        """
        rows = x.flatten(0, -3)
        q, k, v = (
            layer(rows).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in self.inputs
        )
        mask = None if allowed is None else allowed.flatten(0, -3).unsqueeze(1)
        out = attention(q, k, v, mask, is_causal=is_causal)
        return self.output(out.transpose(1, 2).flatten(-2)).view_as(x)


def attention(
    q: Float[Tensor, "B H L D"],
    k: Float[Tensor, "B H L D"],
    v: Float[Tensor, "B H L D"],
    allowed: Bool[Tensor, "B 1 L L"] | None,
    *,
    is_causal: bool = False,
) -> Float[Tensor, "B H L D"]:
    """Return softmax(Q K^T / sqrt(D)) V over the allowed positions, without the L x L matrix."""
    return nn.functional.scaled_dot_product_attention(q, k, v, allowed, is_causal=is_causal)


class EncoderBlock(nn.Module):
    """Attention and a network of every position, each with a residual and a layer norm behind."""

    def __init__(
        self,
        width: int,
        heads: int,
        inner: int,
        activation: Callable[[Tensor], Tensor],
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.attention = SelfAttention(width, heads, generator)
        self.activation = activation
        self.inner = linear(width, inner, 1.0, generator)
        self.outer = linear(inner, width, 1.0, generator)
        self.norms = nn.ModuleList((nn.LayerNorm(width), nn.LayerNorm(width)))

    def forward(
        self,
        x: Float[Tensor, "*B L W"],
        allowed: Bool[Tensor, "*B L L"] | None = None,
        *,
        is_causal: bool = False,
    ) -> Float[Tensor, "*B L W"]:
        first, second = self.norms
        x = first(x + self.attention(x, allowed, is_causal=is_causal))
        return second(x + self.outer(self.activation(self.inner(x))))


def along_time(block: nn.Module, x: Float[Tensor, "M T N W"]) -> Float[Tensor, "M T N W"]:
    """Return a block's causal attention of each agent's own steps, in M episodes of T steps."""
    out: Tensor = block(x.transpose(1, 2), is_causal=True)
    return out.transpose(1, 2)


class ShapleyAttention(nn.Module):
    """What each agent adds to random coalitions, the mean over them (Chen et al. 2024, STAS).

    Attention among the members of a coalition and the agent itself stands for its marginal
    contribution. Coalitions are drawn anew each time, from `generator`.
    """

    def __init__(
        self, num_agents: int, width: int, heads: int, coalitions: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.coalitions = coalitions
        self.generator = generator
        self.attention = SelfAttention(width, heads, generator)
        self.ids = nn.Parameter(0.1 * torch.randn(num_agents, width, generator=generator))

    def forward(
        self, x: Float[Tensor, "*B N W"], acting: Bool[Tensor, "*B N"]
    ) -> Float[Tensor, "*B N W"]:
        """Return each agent's contribution; those not acting are in no coalition."""
        x = x + self.ids
        drawn = draw_coalitions(self.coalitions, x.shape[-2], self.generator).to(x.device)
        total = torch.zeros_like(x)
        for members in drawn:
            total = total + self.attention(x, with_self(members & acting.unsqueeze(-2)))
        return total / self.coalitions


def draw_coalitions(
    count: int, num_agents: int, generator: torch.Generator
) -> Bool[Tensor, "C N N"]:
    """Return random coalitions of every agent, which each other agent joins with probability .5."""
    return torch.rand(count, num_agents, num_agents, generator=generator) < 0.5


def with_self(allowed: Bool[Tensor, "*B L L"]) -> Bool[Tensor, "*B L L"]:
    """Return who sees whom, itself included."""
    return allowed | torch.eye(allowed.shape[-1], dtype=torch.bool, device=allowed.device)
