"""Policies of all agents, discrete and continuous; they read what `TeamNorm` has standardised.

Axes: T time, E environments, N agents, I input features, A actions, H hidden units; ``*L`` any
leading axes.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from envs import EnvSpec
from marl.config import NetworkConfig
from marl.nn.gru import RecurrentBody, initial_hidden
from marl.nn.layers import agent_mlp


@runtime_checkable
class Actor(Protocol):
    """A policy of all agents. ``parameters`` below is what the network puts out for one batch."""

    def __call__(self, obs: Float[Tensor, "*L N I"]) -> Tensor: ...

    def initial_hidden(self, num_envs: int) -> Float[Tensor, "E N H"] | None:
        """Return the hidden state at the start of an episode; None for a feed-forward policy."""
        ...

    def step(
        self, hidden: Float[Tensor, "E N H"] | None, obs: Float[Tensor, "E N I"]
    ) -> tuple[Tensor, Float[Tensor, "E N H"] | None]:
        """Return the parameters of one step and the hidden state after it."""
        ...

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


class ExplicitPolicy(NamedTuple):
    """Log-probabilities and entropies of a minibatch, and how a loss of them is differentiated."""

    log_probs: Float[Tensor, "*L N"]
    entropy: Float[Tensor, "*L N"]
    backward: Callable[[Tensor, Tensor | None], Tensor]
    """Given a loss's derivatives by `log_probs` and by `entropy` (None: it is not in the loss),
    return that by the parameters and set the ``grad`` of what does not come from the network."""


class _ActorBase(nn.Module):
    """The body, common to both kinds of policy."""

    def __init__(self, spec: EnvSpec, config: NetworkConfig, generator: torch.Generator) -> None:
        super().__init__()
        body = RecurrentBody if config.recurrence == "gru" else agent_mlp
        self.body: nn.Module = body(
            spec.num_agents,
            spec.obs_size,
            config.hidden_sizes,
            spec.action_size,
            shared=config.share_parameters,
            output_gain=0.01,
            generator=generator,
            ids_at=spec.obs_size,
        )
        sizes = torch.tensor(spec.action_sizes)
        present = torch.arange(spec.action_size) < sizes[:, None]
        self.register_buffer("present", present, persistent=False)
        self.is_ragged = not bool(present.all())

    def forward(self, obs: Float[Tensor, "*L N I"]) -> Float[Tensor, "*L N A"]:
        return self.body(obs)

    def initial_hidden(self, num_envs: int) -> Float[Tensor, "E N H"] | None:
        """Return the hidden state at the start of an episode; None for a feed-forward policy."""
        return initial_hidden(self.body, num_envs)

    def step(
        self, hidden: Float[Tensor, "E N H"] | None, obs: Float[Tensor, "E N I"]
    ) -> tuple[Float[Tensor, "E N A"], Float[Tensor, "E N H"] | None]:
        """Return the parameters of one step and the hidden state after it."""
        if isinstance(self.body, RecurrentBody):
            assert hidden is not None
            return self.body.step(obs, hidden)
        return self.body(obs), None

    def unroll(
        self,
        obs: Float[Tensor, "T E N I"],
        hidden: Float[Tensor, "E N H"],
        starts: Bool[Tensor, "T E"],
    ) -> tuple[Float[Tensor, "T E N A"], Float[Tensor, "T E N H"]]:
        """Return the parameters of successive steps and the hidden state after each."""
        return self.body(obs, hidden, starts)


class CategoricalActor(_ActorBase):
    """Discrete actions: one masked softmax per agent; an illegal action has probability zero."""

    present: Tensor

    def _masked(
        self,
        logits: Float[Tensor, "*L N A"],
        mask: Bool[Tensor, "*L N A"] | None,
        value: float | None = None,
    ) -> Float[Tensor, "*L N A"]:
        """Return the logits with `value`, by default the lowest number, at illegal actions."""
        if self.is_ragged:
            mask = self.present if mask is None else mask & self.present
        if mask is None:
            return logits
        return logits.masked_fill(~mask, torch.finfo(logits.dtype).min if value is None else value)

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

    def explicit(
        self, parameters: Float[Tensor, "*L N A"], actions: Int64[Tensor, "*L N"], mask: Any
    ) -> "ExplicitPolicy":
        """Return log-probabilities and entropy with their derivatives by the logits z:

        d log p_a / d z_k = [k = a] - p_k,    d H / d z_k = -p_k (log p_k + H).
        """
        # Along the first axis: with few actions, six times as fast as along the last.
        logits = self._masked(parameters, mask).movedim(-1, 0).contiguous()
        log_p = logits.log_softmax(dim=0).movedim(0, -1)
        p, chosen = log_p.exp(), actions.unsqueeze(-1)
        entropy = (p * log_p).sum(dim=-1, keepdim=True).neg_()

        def backward(by_log_prob: Tensor, by_entropy: Tensor | None) -> Tensor:
            by_log_prob = by_log_prob.unsqueeze(-1)
            by_logits = (p * by_log_prob).neg_().scatter_add_(-1, chosen, by_log_prob)
            if by_entropy is not None:
                by_logits -= (log_p + entropy).mul_(p).mul_(by_entropy.unsqueeze(-1))
            return self._masked(by_logits, mask, 0.0)

        log_probs = log_p.gather(-1, chosen).squeeze(-1)
        return ExplicitPolicy(log_probs, entropy.squeeze(-1), backward)

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

    def explicit(
        self, parameters: Float[Tensor, "*L N A"], actions: Float[Tensor, "*L N A"], mask: Any
    ) -> "ExplicitPolicy":
        """Return log-probabilities and entropy with their derivatives, with z = (a - mean) / std:

        d log p / d mean = z / std,    d log p / d log std = z^2 - 1,    d H / d log std = 1.
        """
        inverse = (-self.log_std).exp()
        z = (actions - parameters) * inverse
        density = -0.5 * z**2 - self.log_std - 0.5 * math.log(2.0 * math.pi)

        def backward(by_log_prob: Tensor, by_entropy: Tensor | None) -> Tensor:
            by_log_prob = by_log_prob.unsqueeze(-1)
            by_log_std = ((z**2 - 1.0) * by_log_prob).flatten(0, -3).sum(dim=0)
            if by_entropy is not None:
                by_log_std += by_entropy.flatten(0, -2).sum(dim=0).unsqueeze(-1)
            assert self.log_std.grad is not None
            self.log_std.grad.copy_(self._present(by_log_std))
            return self._present(z * inverse * by_log_prob)

        log_probs = self._present(density).sum(dim=-1)
        return ExplicitPolicy(log_probs, self.entropy(parameters, mask), backward)

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
