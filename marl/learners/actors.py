"""Policies of all agents, of discrete, continuous and composite actions.

Axes: T time, E environments, N agents, M of them, O observation features, A actions, H hidden
units, K entities that actions are about, W width of their tokens, Q outputs of the layers; ``*L``
any leading axes, ``*B`` those between time and agents.
"""

import torch
from jaxtyping import Bool, Float, Num
from torch import Tensor, nn

from envs import EnvSpec
from marl.config import NetworkConfig
from marl.learners.distributions import (
    EVERYONE,
    Categorical,
    Composite,
    CompositeLayout,
    Distribution,
    Gaussian,
)
from marl.nn.encoders import make_encoder
from marl.nn.gru import RecurrentBody, initial_hidden
from marl.nn.gru_passes import explicit_passes
from marl.nn.layers import agent_mlp
from marl.nn.mlp import ExplicitMLP
from marl.nn.normalisation import TeamNorm


class _NetworkActor(nn.Module):
    """An `Actor` of one network, common to all kinds of actions."""

    present: Tensor

    def __init__(
        self, spec: EnvSpec, config: NetworkConfig, norm: TeamNorm, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.norm = norm
        self.encoder = make_encoder(
            spec,
            config.encoder,
            "network.encoder",
            shared=config.share_parameters,
            generator=generator,
        )
        inputs = spec.obs_size if self.encoder is None else self.encoder.features
        self.about = None if self.encoder is None else self.encoder.about
        body = RecurrentBody if config.recurrence == "gru" else agent_mlp
        self.body: nn.Module = body(
            spec.num_agents,
            inputs,
            config.hidden_sizes,
            spec.action_size if self.about is None else self.about.outputs,
            shared=config.share_parameters,
            output_gain=0.01,
            generator=generator,
            ids_at=inputs,
        )
        self.passes = explicit_passes(self.body) if self.encoder is None else None
        sizes = torch.tensor(spec.action_sizes)
        present = torch.arange(spec.action_size) < sizes[:, None]
        self.register_buffer("present", present, persistent=False)
        self.is_ragged = not bool(present.all())

    def distribution(
        self,
        outputs: Float[Tensor, "*L M A"],
        mask: Bool[Tensor, "*L M A"] | None = None,
        agents: slice = EVERYONE,
    ) -> Distribution:
        """Return the distribution of actions that the outputs of some `agents` stand for."""
        raise NotImplementedError

    def forward(self, obs: Num[Tensor, "*L N O"]) -> Float[Tensor, "*L N A"]:
        """Return the network's outputs for standardised observations."""
        body = self.passes if isinstance(self.passes, ExplicitMLP) else self.body
        read, tokens = self._read(obs)
        return self.of_actions(body(read), tokens)

    def _read(self, obs: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return what the layers read of standardised observations, and the tokens of entities."""
        return (obs, None) if self.encoder is None else self.encoder.with_tokens(obs)

    def of_actions(
        self, outputs: Float[Tensor, "*L Q"], tokens: Float[Tensor, "*L K W"] | None
    ) -> Float[Tensor, "*L A"]:
        """Return the outputs by action: those about entities come from the entities' tokens."""
        if self.about is None or tokens is None:
            return outputs
        return self.about.logits(outputs, tokens)

    def unroll(
        self,
        obs: Num[Tensor, "T *B N O"],
        hidden: Float[Tensor, "*B N H"],
        starts: Bool[Tensor, "T *B"],
    ) -> tuple[Float[Tensor, "T *B N A"], Float[Tensor, "T *B N H"]]:
        """Return the outputs of successive steps and the hidden state after each."""
        read, tokens = self._read(obs)
        outputs, states = self.body(read, hidden, starts)
        return self.of_actions(outputs, tokens), states

    def initial_hidden(self, num_envs: int) -> Float[Tensor, "E N H"] | None:
        """Return the hidden state at the start of an episode; None for a feed-forward policy."""
        return initial_hidden(self.body, num_envs)

    def act(
        self,
        obs: Num[Tensor, "*L N O"],
        hidden: Float[Tensor, "*L N H"] | None = None,
        mask: Bool[Tensor, "*L N A"] | None = None,
        noise: Tensor | None = None,
    ) -> tuple[Tensor, Float[Tensor, "*L N"], Float[Tensor, "*L N H"] | None]:
        """Return actions, their log-probabilities and the next hidden state; see `Actor`."""
        policy, hidden = self.step_distribution(obs, hidden, mask)
        if noise is None:
            actions = policy.mode()
            return actions, policy.log_prob(actions), hidden
        return *policy.draw(noise), hidden

    def step_distribution(
        self,
        obs: Num[Tensor, "*L N O"],
        hidden: Float[Tensor, "*L N H"] | None = None,
        mask: Bool[Tensor, "*L N A"] | None = None,
    ) -> tuple[Distribution, Float[Tensor, "*L N H"] | None]:
        """Return the distribution from which `act` draws, and the next hidden state."""
        outputs, hidden = self._step(self.norm.obs(obs), hidden)
        return self.distribution(outputs, mask), hidden

    def log_prob(
        self,
        obs: Num[Tensor, "*L N O"],
        actions: Tensor,
        mask: Bool[Tensor, "*L N A"] | None = None,
    ) -> Float[Tensor, "*L N"]:
        """Return log-probabilities of actions at single steps; see `Actor`."""
        if isinstance(self.body, RecurrentBody):
            raise ValueError("a recurrent policy has no log-probabilities of single steps")
        return self.distribution(self(self.norm.obs(obs)), mask).log_prob(actions)

    def _step(self, obs: Tensor, hidden: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the outputs of one step and the hidden state after it."""
        if not isinstance(self.body, RecurrentBody):
            return self(obs), None
        if hidden is None:
            hidden = self.body.gru.weight_hidden.new_zeros(len(obs), *self.body.hidden_shape)
        read, tokens = self._read(obs)
        outputs, hidden = self.body.step(read, hidden)
        return self.of_actions(outputs, tokens), hidden


class CategoricalActor(_NetworkActor):
    """Discrete actions."""

    def distribution(
        self,
        outputs: Float[Tensor, "*L M A"],
        mask: Bool[Tensor, "*L M A"] | None = None,
        agents: slice = EVERYONE,
    ) -> Categorical:
        """Return the softmax over the legal actions; outputs are logits."""
        if self.is_ragged:
            present = self.present[agents]
            mask = present if mask is None else mask & present
        if mask is not None:
            outputs = outputs.masked_fill(~mask, torch.finfo(outputs.dtype).min)
        return Categorical(outputs, mask)

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Return Gumbel noise (*shape, N, A)."""
        empty = torch.empty((*shape, *self.present.shape), device=self.present.device)
        return -empty.exponential_(generator=generator).log_()


class GaussianActor(_NetworkActor):
    """Continuous actions, with a learned deviation that does not depend on the observation.

    Samples are unbounded and log-probabilities belong to them; the environment gets them clipped
    to [-1, 1] (`Collector`).
    """

    def __init__(
        self, spec: EnvSpec, config: NetworkConfig, norm: TeamNorm, generator: torch.Generator
    ) -> None:
        super().__init__(spec, config, norm, generator)
        self.log_std = nn.Parameter(
            torch.full((spec.num_agents, spec.action_size), config.initial_log_std)
        )

    def distribution(
        self,
        outputs: Float[Tensor, "*L M A"],
        mask: Bool[Tensor, "*L M A"] | None = None,
        agents: slice = EVERYONE,
    ) -> Gaussian | Composite:
        """Return the Gaussian around the outputs; continuous actions have no mask."""
        present = self.present[agents] if self.is_ragged else None
        return Gaussian(outputs, self.own_log_std(agents), present)

    def own_log_std(self, agents: slice) -> Tensor:
        """Return the logarithms of some agents' deviations, whose gradient is written in place."""
        if agents == EVERYONE:
            return self.log_std
        log_std = nn.Parameter(self.log_std.data[agents])  # the same memory, gradient included
        log_std.grad = None if self.log_std.grad is None else self.log_std.grad[agents]
        return log_std

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Return standard normal noise (*shape, N, A)."""
        size = (*shape, *self.present.shape)
        return torch.randn(size, generator=generator, device=self.present.device)


class CompositeActor(GaussianActor):
    """Actions of several parts: choices and numbers.

    The network's outputs are the logits of choices and the means of numbers; the deviations of the
    latter are learned as those of a `GaussianActor`.
    """

    def __init__(
        self, spec: EnvSpec, config: NetworkConfig, norm: TeamNorm, generator: torch.Generator
    ) -> None:
        super().__init__(spec, config, norm, generator)
        self.layout = CompositeLayout(spec)

    def distribution(
        self,
        outputs: Float[Tensor, "*L M A"],
        mask: Bool[Tensor, "*L M A"] | None = None,
        agents: slice = EVERYONE,
    ) -> Composite:
        """Return the softmaxes over the legal options and the Gaussian around the other outputs."""
        return self.layout.distribution(outputs, self.own_log_std(agents), mask, agents)

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Return noise (*shape, N, A): Gumbel for choices, standard normal for numbers."""
        empty = torch.empty((*shape, *self.present.shape), device=self.present.device)
        gumbel = -empty.exponential_(generator=generator).log_()
        if not self.layout.has_numbers:
            return gumbel
        return torch.where(self.layout.is_choice, gumbel, super().noise(shape, generator))


ACTORS: dict[str, type[CategoricalActor | GaussianActor]] = {
    "discrete": CategoricalActor,
    "continuous": GaussianActor,
    "composite": CompositeActor,
}
"""By `EnvSpec.action_kind`."""


def make_actor(
    spec: EnvSpec, config: NetworkConfig, norm: TeamNorm, generator: torch.Generator
) -> CategoricalActor | GaussianActor:
    """Return the policy that fits the environment's actions."""
    return ACTORS[spec.action_kind](spec, config, norm, generator)
