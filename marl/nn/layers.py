"""Feed-forward layers for a team of agents and for its state, and arithmetic that they share.

Axes: N agents, I inputs, H units; ``*L`` any leading axes.
"""

import math
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from marl import UserError
from marl.utils.ranks import SINGLE, Ranks


class NonFiniteError(UserError):
    """A tensor that training depends on holds NaN or infinity."""


def masked_mean(
    x: Float[Tensor, "*L"], present: Bool[Tensor, "*L"] | None, count: Tensor | None = None
) -> Tensor:
    """Return the mean over present rows; zero, with zero gradient, where none is.

    `count` is that of `mean_count`, where other processes have rows, too.
    """
    if present is None:
        return x.mean()
    count = mean_count(present) if count is None else count
    return x.where(present, torch.zeros_like(x)).sum() / count


def mean_shares(
    x: Float[Tensor, "*L"], present: Bool[Tensor, "*L"] | None, count: Tensor | None = None
) -> Float[Tensor, "*L"]:
    """Return the derivative of `masked_mean` by each row: its share in the mean."""
    if present is None:
        return torch.full_like(x, 1.0 / x.numel())
    return present.to(x.dtype) / (mean_count(present) if count is None else count)


def mean_count(present: Bool[Tensor, "*L"], ranks: Ranks = SINGLE) -> Tensor:
    """Return the number of present rows, at least 1, as a mean over all processes.

    Where every process divides by it, the mean of their sums is the mean over all rows.
    """
    count = present.sum()
    if ranks.size == 1:
        return count.clamp(min=1)
    return ranks.sum_(count, "rows").clamp(min=1) / ranks.size


def check_finite(ranks: Ranks = SINGLE, /, **tensors: Tensor) -> None:
    """Raise `NonFiniteError` naming the first tensor that holds NaN or infinity in any process."""
    bad = (name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all()))
    name = next(bad, "")
    if ranks.any(bool(name)):
        raise NonFiniteError(
            f"{name or 'a tensor of another process'} holds NaN or infinity; the run is stopped "
            "with its state saved. A smaller learning rate or gradient norm, or a check of the "
            "environment (marl check), usually helps"
        )


def correlation(x: Tensor, y: Tensor, present: Tensor | None = None) -> Tensor:
    """Return Pearson's correlation after broadcasting y to the shape of x, where present."""
    y = y.expand_as(x)
    if present is not None:
        x, y = x[present], y[present]
    x, y = x - x.mean(), y - y.mean()
    return (x * y).mean() / ((x**2).mean() * (y**2).mean()).sqrt().clamp(min=1e-12)


class _Tanh(torch.autograd.Function):
    """tanh with its derivative 1 - y^2."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = _tanh(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return torch.ops.aten.tanh_backward(grads[0], y)


def _tanh(x: Tensor) -> Tensor:
    """Return tanh x, computed as 2 sigmoid(2x) - 1 (error 2e-7).

    PyTorch takes its own tanh from MKL, whose numbers and speed depend on the maker of the
    processor: on AMD's the sigmoid is 2 to 5 times as fast (`benchmarks/tanh.py`), on Intel's a
    third slower. One form for all gives both the same numbers.
    """
    return torch.sigmoid(x + x).mul_(2.0).sub_(1.0)


class Tanh(nn.Module):
    """The hidden units' activation."""

    def forward(self, x: Tensor) -> Tensor:
        if not (x.requires_grad and torch.is_grad_enabled()):
            return _tanh(x)
        out: Tensor = _Tanh.apply(x)  # type: ignore[no-untyped-call]  # untyped in torch
        return out


def with_ids(x: Float[Tensor, "*L N I"], at: int) -> Float[Tensor, "*L N J"]:
    """Return agents' features with their one-hot ids before feature `at`."""
    ids = torch.eye(x.shape[-2], dtype=x.dtype, device=x.device).expand(*x.shape[:-1], -1)
    return torch.cat((x[..., :at], ids, x[..., at:]), dim=-1)


def with_team(x: Float[Tensor, "*L N I"], team: Float[Tensor, "*L S"]) -> Float[Tensor, "*L N J"]:
    """Return agents' features with the team's behind them."""
    return torch.cat((x, team.unsqueeze(-2).expand(*x.shape[:-1], team.shape[-1])), dim=-1)


class AgentLinear(nn.Module):
    """A linear layer applied to every agent, with shared weights or one set of weights each.

    With `ids_at` it also knows whom it is applied to: as if x held the agents' one-hot ids before
    feature `ids_at`. Shared weights never see them written out, nor the team's features once per
    agent: the columns of the ids are biases, and the team's part is computed once, so that the cost
    of an agent does not grow with the number of agents.
    """

    def __init__(
        self,
        num_agents: int,
        inputs: int,
        outputs: int,
        *,
        shared: bool,
        gain: float,
        generator: torch.Generator,
        ids_at: int | None = None,
    ) -> None:
        """`inputs` counts the agent's own features and the team's, but not the ids."""
        super().__init__()
        self.shared = shared
        self.ids_at = ids_at
        inputs += 0 if ids_at is None else num_agents
        groups = 1 if shared else num_agents
        weights = [torch.empty(outputs, inputs) for _ in range(groups)]
        for weight in weights:
            nn.init.orthogonal_(weight, gain, generator=generator)
        self.weight = nn.Parameter(weights[0] if shared else torch.stack(weights))
        self.bias = nn.Parameter(torch.zeros((outputs,) if shared else (num_agents, outputs)))

    def forward(
        self, x: Float[Tensor, "*L N I"], team: Float[Tensor, "*L S"] | None = None
    ) -> Float[Tensor, "*L N H"]:
        if self.shared and self.ids_at is not None:
            own, ids, of_team = self.columns(x.shape[-1], x.shape[-2])
            common = ids.t().contiguous() + self.bias
            if team is not None:
                common = nn.functional.linear(team, of_team).unsqueeze(-2) + common
            return nn.functional.linear(x, own) + common
        x = x if team is None else with_team(x, team)
        x = x if self.ids_at is None else with_ids(x, self.ids_at)
        if self.shared:
            return nn.functional.linear(x, self.weight, self.bias)
        return torch.einsum("...ni,noi->...no", x, self.weight) + self.bias

    def columns(self, own: int, num_agents: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the columns of shared weights: of the agent's own features, ids, the team's."""
        assert self.ids_at is not None
        before, ids, after = self.weight.split(
            (self.ids_at, num_agents, self.weight.shape[1] - num_agents - self.ids_at), dim=1
        )
        behind = own - self.ids_at
        of_own = torch.cat((before, after[:, :behind]), dim=1) if behind else before
        return of_own, ids, after[:, behind:]


class AgentMLP(nn.Sequential):
    """A tanh network of a team of agents; its first layer also reads the team's features."""

    def forward(
        self, x: Float[Tensor, "*L N I"], team: Float[Tensor, "*L S"] | None = None
    ) -> Float[Tensor, "*L N H"]:
        first, *others = self
        y = first(x, team)
        for layer in others:
            y = layer(y)
        return y


def agent_mlp(
    num_agents: int,
    inputs: int,
    hidden: tuple[int, ...],
    outputs: int,
    *,
    shared: bool,
    output_gain: float,
    generator: torch.Generator,
    ids_at: int | None = None,
) -> AgentMLP:
    """Return a tanh network from (*L, N, inputs) to (*L, N, outputs) for a team of agents.

    With `ids_at` it knows which agent it is applied to (see `AgentLinear`).
    """
    sizes = (inputs, *hidden, outputs)
    layers: list[nn.Module] = []
    for index in range(len(sizes) - 1):
        last = index == len(sizes) - 2
        layers.append(
            AgentLinear(
                num_agents,
                sizes[index],
                sizes[index + 1],
                shared=shared,
                gain=output_gain if last else math.sqrt(2.0),
                generator=generator,
                ids_at=ids_at if index == 0 else None,
            )
        )
        if not last:
            layers.append(Tanh())
    return AgentMLP(*layers)


def linear(inputs: int, outputs: int, gain: float, generator: torch.Generator) -> nn.Linear:
    """Return a layer with orthogonal weights, drawn from the generator, and no bias at first."""
    layer = nn.Linear(inputs, outputs)
    nn.init.orthogonal_(layer.weight, gain, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer


def mlp(
    inputs: int,
    hidden: tuple[int, ...],
    outputs: int,
    *,
    output_gain: float,
    generator: torch.Generator,
) -> nn.Sequential:
    """Return a tanh network from (*L, inputs) to (*L, outputs)."""
    sizes = (inputs, *hidden, outputs)
    layers: list[nn.Module] = []
    for index in range(len(sizes) - 1):
        last = index == len(sizes) - 2
        linear = nn.Linear(sizes[index], sizes[index + 1])
        nn.init.orthogonal_(
            linear.weight, output_gain if last else math.sqrt(2.0), generator=generator
        )
        nn.init.zeros_(linear.bias)
        layers.append(linear)
        if not last:
            layers.append(Tanh())
    return nn.Sequential(*layers)
