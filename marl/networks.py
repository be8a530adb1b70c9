"""Bodies, policies and critics; all of them read inputs that `TeamNorm` has standardised.

Axes: N agents, O observation, S state, A actions, H units; ``*L`` any leading axes.
"""

import math
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from envs import EnvSpec
from marl.config import NetworkConfig
from marl.normalisers import ValueNorm, input_size


class _Tanh(torch.autograd.Function):
    """tanh(x) = 2 sigmoid(2x) - 1, five times as fast as torch.tanh on a CPU (error 1e-7)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = torch.sigmoid(x + x).mul_(2.0).sub_(1.0)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return torch.ops.aten.tanh_backward(grads[0], y)


class Tanh(nn.Module):
    """The hidden units' activation."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = _Tanh.apply(x)  # type: ignore[no-untyped-call]  # untyped in torch
        return out


class AgentLinear(nn.Module):
    """A linear layer applied to every agent, with shared weights or one set of weights each."""

    def __init__(
        self,
        num_agents: int,
        inputs: int,
        outputs: int,
        *,
        shared: bool,
        gain: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.shared = shared
        copies = 1 if shared else num_agents
        weights = [torch.empty(outputs, inputs) for _ in range(copies)]
        for weight in weights:
            nn.init.orthogonal_(weight, gain, generator=generator)
        self.weight = nn.Parameter(weights[0] if shared else torch.stack(weights))
        self.bias = nn.Parameter(torch.zeros((outputs,) if shared else (num_agents, outputs)))

    def forward(self, x: Float[Tensor, "*L N I"]) -> Float[Tensor, "*L N H"]:
        if self.shared:
            return nn.functional.linear(x, self.weight, self.bias)
        return torch.einsum("...ni,noi->...no", x, self.weight) + self.bias


def agent_mlp(
    num_agents: int,
    inputs: int,
    hidden: tuple[int, ...],
    outputs: int,
    *,
    shared: bool,
    output_gain: float,
    generator: torch.Generator,
) -> nn.Sequential:
    """Return a tanh network from (*L, N, inputs) to (*L, N, outputs) for a team of agents."""
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
            )
        )
        if not last:
            layers.append(Tanh())
    return nn.Sequential(*layers)


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


@runtime_checkable
class Actor(Protocol):
    """A policy of all agents. ``parameters`` below is what the network puts out for one batch."""

    def __call__(self, obs: Float[Tensor, "*L N I"]) -> Tensor: ...

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Return the random numbers that `sample` consumes, for leading axes `shape`."""
        ...

    def sample(self, parameters: Tensor, noise: Tensor, mask: Tensor | None) -> Tensor:
        """Return actions drawn by the given noise."""
        ...

    def mode(self, parameters: Tensor, mask: Tensor | None) -> Tensor:
        """Return the most likely actions."""
        ...

    def log_prob(self, parameters: Tensor, actions: Tensor, mask: Tensor | None) -> Tensor:
        """Return (*L, N) log-probabilities of unclipped actions."""
        ...

    def entropy(self, parameters: Tensor, mask: Tensor | None) -> Tensor:
        """Return the (*L, N) entropy in nats."""
        ...


class _ActorBase(nn.Module):
    """The body, common to both kinds of policy."""

    def __init__(self, spec: EnvSpec, config: NetworkConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.body = agent_mlp(
            spec.num_agents,
            input_size(spec),
            config.hidden_sizes,
            spec.action_size,
            shared=config.share_parameters,
            output_gain=0.01,
            generator=generator,
        )
        sizes = torch.tensor(spec.action_sizes)
        present = torch.arange(spec.action_size) < sizes[:, None]
        self.register_buffer("present", present, persistent=False)
        self.is_ragged = not bool(present.all())

    def forward(self, obs: Float[Tensor, "*L N I"]) -> Float[Tensor, "*L N A"]:
        return self.body(obs)


class CategoricalActor(_ActorBase):
    """Discrete actions: one masked softmax per agent; an illegal action has probability zero."""

    present: Tensor

    def _masked(
        self, logits: Float[Tensor, "*L N A"], mask: Bool[Tensor, "*L N A"] | None
    ) -> Float[Tensor, "*L N A"]:
        if self.is_ragged:
            mask = self.present if mask is None else mask & self.present
        if mask is None:
            return logits
        return logits.masked_fill(~mask, torch.finfo(logits.dtype).min)

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Return Gumbel noise (*shape, N, A)."""
        empty = torch.empty((*shape, *self.present.shape), device=self.present.device)
        return -empty.exponential_(generator=generator).log_()

    def sample(
        self, parameters: Float[Tensor, "*L N A"], noise: Tensor, mask: Tensor | None
    ) -> Int64[Tensor, "*L N"]:
        """Return the arg max of logits plus Gumbel noise, which is a draw from the softmax."""
        return self._masked(parameters + noise, mask).argmax(dim=-1)

    def mode(self, parameters: Tensor, mask: Tensor | None) -> Int64[Tensor, "*L N"]:
        """Return the most likely legal action."""
        return self._masked(parameters, mask).argmax(dim=-1)

    def log_prob(
        self, parameters: Tensor, actions: Int64[Tensor, "*L N"], mask: Tensor | None
    ) -> Float[Tensor, "*L N"]:
        """Return the log-probability among the legal actions."""
        log_probs = self._masked(parameters, mask).log_softmax(dim=-1)
        return log_probs.gather(-1, actions.unsqueeze(-1)).squeeze(-1)

    def entropy(self, parameters: Tensor, mask: Tensor | None) -> Float[Tensor, "*L N"]:
        """Return the entropy over the legal actions."""
        log_probs = self._masked(parameters, mask).log_softmax(dim=-1)
        probs = log_probs.exp()
        return -(probs * log_probs.masked_fill(probs == 0, 0.0)).sum(dim=-1)


class GaussianActor(_ActorBase):
    """Continuous actions: a diagonal Gaussian per agent with a learned, state-free deviation.

    Samples are unbounded and log-probabilities belong to them; the environment gets them clipped
    to [-1, 1] (`Collector`).
    """

    present: Tensor

    def __init__(self, spec: EnvSpec, config: NetworkConfig, generator: torch.Generator) -> None:
        super().__init__(spec, config, generator)
        self.log_std = nn.Parameter(
            torch.full((spec.num_agents, spec.action_size), config.initial_log_std)
        )

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Return standard normal noise (*shape, N, A)."""
        size = (*shape, *self.present.shape)
        return torch.randn(size, generator=generator, device=self.present.device)

    def sample(
        self, parameters: Float[Tensor, "*L N A"], noise: Tensor, mask: Tensor | None
    ) -> Float[Tensor, "*L N A"]:
        """Return mean plus deviation times noise; an agent's absent dimensions are zero."""
        return self._present(parameters + noise * self.log_std.exp())

    def mode(self, parameters: Tensor, mask: Tensor | None) -> Float[Tensor, "*L N A"]:
        """Return the mean."""
        return self._present(parameters)

    def log_prob(
        self, parameters: Tensor, actions: Float[Tensor, "*L N A"], mask: Tensor | None
    ) -> Float[Tensor, "*L N"]:
        """Return the log-density, summed over the agent's own dimensions."""
        standardised = (actions - parameters) * (-self.log_std).exp()
        density = -0.5 * standardised**2 - self.log_std - 0.5 * math.log(2.0 * math.pi)
        return self._present(density).sum(dim=-1)

    def entropy(self, parameters: Tensor, mask: Tensor | None) -> Float[Tensor, "*L N"]:
        """Return the entropy, summed over the agent's own dimensions."""
        per_dim = self.log_std + 0.5 * math.log(2.0 * math.pi * math.e)
        return self._present(per_dim).sum(dim=-1).expand(parameters.shape[:-1])

    def _present(self, x: Tensor) -> Tensor:
        return x * self.present if self.is_ragged else x


def make_actor(
    spec: EnvSpec, config: NetworkConfig, generator: torch.Generator
) -> CategoricalActor | GaussianActor:
    """Return the policy that fits the environment's actions."""
    kind = CategoricalActor if spec.action_kind == "discrete" else GaussianActor
    return kind(spec, config, generator)


class TeamCritic(nn.Module):
    """V_phi(s): the normalised value of the team's stream."""

    def __init__(self, spec: EnvSpec, config: NetworkConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.value_norm = ValueNorm()
        self.body = mlp(
            spec.state_size, config.hidden_sizes, 1, output_gain=1.0, generator=generator
        )

    def forward(
        self, obs: Float[Tensor, "*L N I"], state: Float[Tensor, "*L S"]
    ) -> Float[Tensor, "*L"]:
        return self.body(state).squeeze(-1)


class LocalCritics(nn.Module):
    """V_psi,i(o_i, s): the normalised value of every agent's local stream."""

    def __init__(self, spec: EnvSpec, config: NetworkConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.value_norm = ValueNorm()
        self.body = agent_mlp(
            spec.num_agents,
            input_size(spec) + spec.state_size,
            config.hidden_sizes,
            1,
            shared=config.share_parameters,
            output_gain=1.0,
            generator=generator,
        )

    def forward(
        self, obs: Float[Tensor, "*L N I"], state: Float[Tensor, "*L S"]
    ) -> Float[Tensor, "*L N"]:
        team = state.unsqueeze(-2).expand(*obs.shape[:-1], state.shape[-1])
        return self.body(torch.cat((obs, team), dim=-1)).squeeze(-1)
