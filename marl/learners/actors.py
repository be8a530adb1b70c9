"""Policies of all agents, of discrete, continuous and composite actions.

Axes: T time, E environments, N agents, M of them, O observation features, A actions, H hidden
units; P choices of a composite action, K options of the largest; ``*L`` any leading axes, ``*B``
those between time and agents.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from envs import EnvSpec
from envs.parts import part_layout
from marl.config import NetworkConfig
from marl.nn.gru import RecurrentBody, initial_hidden
from marl.nn.layers import agent_mlp
from marl.nn.mlp import ExplicitMLP, has_explicit_passes
from marl.nn.normalisation import TeamNorm

EVERYONE = slice(None)


class ExplicitPolicy(NamedTuple):
    """Log-probabilities and entropies of a minibatch, and how a loss of them is differentiated."""

    log_probs: Float[Tensor, "*L N"]
    entropy: Float[Tensor, "*L N"]
    backward: Callable[[Tensor, Tensor | None], Tensor]
    """Given a loss's derivatives by `log_probs` and by `entropy` (None: it is not in the loss),
    return that by the outputs and set the ``grad`` of what does not come from the network."""


@dataclass(frozen=True)
class Categorical:
    """One softmax per agent over its legal actions; an illegal one has probability zero."""

    logits: Float[Tensor, "*L N A"]
    """Illegal actions hold the smallest number there is."""
    legal: Bool[Tensor, "*M N A"] | None = None
    """None: all."""

    def sample(self, noise: Float[Tensor, "*L N A"]) -> Int64[Tensor, "*L N"]:
        """Return the arg max of logits plus Gumbel noise, which is a draw from the softmax."""
        return (self.logits + noise).argmax(dim=-1)

    def mode(self) -> Int64[Tensor, "*L N"]:
        """Return the most likely legal action."""
        return self.logits.argmax(dim=-1)

    def log_prob(self, actions: Int64[Tensor, "*L N"]) -> Float[Tensor, "*L N"]:
        """Return the log-probability among the legal actions."""
        log_probs = self.logits.log_softmax(dim=-1)
        return log_probs.gather(-1, actions.unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> Float[Tensor, "*L N"]:
        """Return the entropy over the legal actions, in nats."""
        log_probs = self.logits.log_softmax(dim=-1)
        return -(log_probs.exp() * log_probs).sum(dim=-1)

    def explicit(self, actions: Int64[Tensor, "*L N"]) -> ExplicitPolicy:
        """Return log-probabilities and entropy with their derivatives by the logits z:

        d log p_a / d z_k = [k = a] - p_k,    d H / d z_k = -p_k (log p_k + H).
        """
        # Along the first axis: with few actions, six times as fast as along the last.
        log_p = self.logits.movedim(-1, 0).contiguous().log_softmax(dim=0).movedim(0, -1)
        p, chosen = log_p.exp(), actions.unsqueeze(-1)
        entropy = (p * log_p).sum(dim=-1, keepdim=True).neg_()

        def backward(by_log_prob: Tensor, by_entropy: Tensor | None) -> Tensor:
            by_log_prob = by_log_prob.unsqueeze(-1)
            by_logits = (p * by_log_prob).neg_().scatter_add_(-1, chosen, by_log_prob)
            if by_entropy is not None:
                by_logits -= (log_p + entropy).mul_(p).mul_(by_entropy.unsqueeze(-1))
            return by_logits if self.legal is None else by_logits.masked_fill(~self.legal, 0.0)

        log_probs = log_p.gather(-1, chosen).squeeze(-1)
        return ExplicitPolicy(log_probs, entropy.squeeze(-1), backward)


@dataclass(frozen=True)
class Gaussian:
    """A diagonal Gaussian per agent over its own action dimensions."""

    mean: Float[Tensor, "*L N A"]
    log_std: Float[Tensor, "N A"]
    present: Bool[Tensor, "N A"] | None
    """The agents' own dimensions; the others are always zero. None: all."""

    def sample(self, noise: Float[Tensor, "*L N A"]) -> Float[Tensor, "*L N A"]:
        """Return mean plus deviation times noise."""
        return self._present(self.mean + noise * self.log_std.exp())

    def mode(self) -> Float[Tensor, "*L N A"]:
        """Return the mean."""
        return self._present(self.mean)

    def log_prob(self, actions: Float[Tensor, "*L N A"]) -> Float[Tensor, "*L N"]:
        """Return the log-density, summed over the agent's own dimensions."""
        standardised = (actions - self.mean) * (-self.log_std).exp()
        density = -0.5 * standardised**2 - self.log_std - 0.5 * math.log(2.0 * math.pi)
        return self._present(density).sum(dim=-1)

    def executed_log_prob(self, actions: Float[Tensor, "*L N A"]) -> Float[Tensor, "*L N"]:
        """Return the log-probability of actions as an environment receives them, in [-1, 1].

        Draws beyond a bound are clipped to it, so that an action at a bound has the probability of
        all of them; one in between has a density. Summed over the agent's own dimensions.
        """
        inverse = (-self.log_std).exp()
        z = (actions - self.mean) * inverse
        density = -0.5 * z**2 - self.log_std - 0.5 * math.log(2.0 * math.pi)
        above = torch.special.log_ndtr((self.mean - 1.0) * inverse)
        below = torch.special.log_ndtr((-1.0 - self.mean) * inverse)
        chosen = torch.where(actions >= 1.0, above, torch.where(actions <= -1.0, below, density))
        return self._present(chosen).sum(dim=-1)

    def entropy(self) -> Float[Tensor, "*L N"]:
        """Return the entropy in nats, summed over the agent's own dimensions."""
        per_dim = self.log_std + 0.5 * math.log(2.0 * math.pi * math.e)
        return self._present(per_dim).sum(dim=-1).expand(self.mean.shape[:-1])

    def explicit(self, actions: Float[Tensor, "*L N A"]) -> ExplicitPolicy:
        """Return log-probabilities and entropy with their derivatives, with z = (a - mean) / std:

        d log p / d mean = z / std,    d log p / d log std = z^2 - 1,    d H / d log std = 1.
        """
        inverse = (-self.log_std).exp()
        z = (actions - self.mean) * inverse
        density = -0.5 * z**2 - self.log_std - 0.5 * math.log(2.0 * math.pi)

        def backward(by_log_prob: Tensor, by_entropy: Tensor | None) -> Tensor:
            by_log_prob = by_log_prob.unsqueeze(-1)
            by_log_std = ((z**2 - 1.0) * by_log_prob).flatten(0, -3).sum(dim=0)
            if by_entropy is not None:
                by_log_std += by_entropy.flatten(0, -2).sum(dim=0).unsqueeze(-1)
            assert self.log_std.grad is not None
            self.log_std.grad.copy_(self._present(by_log_std))
            return self._present(z * inverse * by_log_prob)

        return ExplicitPolicy(self._present(density).sum(dim=-1), self.entropy(), backward)

    def _present(self, x: Tensor) -> Tensor:
        return x if self.present is None else x * self.present


@dataclass(frozen=True)
class Parts:
    """Where the choices of composite actions stand among their columns (`envs.parts`)."""

    columns: Int64[Tensor, "N PK"]
    """The column of each option of each choice; A, behind the last, where there is none."""
    slots: Int64[Tensor, "N A"]
    """The inverse: where a column stands; 0 for a number."""
    is_choice: Bool[Tensor, "N A"]
    """The columns of choices."""
    exists: Bool[Tensor, "N P"]
    """Whether an agent has so many choices."""

    def by_choice(self, x: Float[Tensor, "*L N A"], fill: float) -> Float[Tensor, "*L N P K"]:
        """Return columns by the choice they belong to, `fill` where there are none."""
        padded = nn.functional.pad(x, (0, 1), value=fill)
        found = padded.gather(-1, self.columns.expand(*x.shape[:-1], -1))
        return found.unflatten(-1, (self.exists.shape[1], -1))

    def by_column(self, x: Float[Tensor, "*L N P K"]) -> Float[Tensor, "*L N A"]:
        """Return what `by_choice` returned as columns again; zero for numbers."""
        slots = self.slots.expand(*x.shape[:-2], -1)
        return x.flatten(-2).gather(-1, slots) * self.is_choice

    def of(self, agents: slice) -> "Parts":
        """Return those of some agents."""
        every = (self.columns, self.slots, self.is_choice, self.exists)
        return Parts(*(each[agents] for each in every))


@dataclass(frozen=True)
class Composite:
    """A softmax for each choice of an action and a Gaussian for its numbers, all independent.

    Log-probabilities and entropies are the sums of theirs. In an action the option chosen is 1 and
    the others are 0, so that one array holds both kinds.
    """

    logits: Float[Tensor, "*L N A"]
    """In the columns of choices; illegal options hold the smallest number there is."""
    parts: Parts
    numbers: Gaussian | None
    """Present in the columns of numbers; None: no agent has any."""
    legal: Bool[Tensor, "*M N A"] | None = None
    """None: all."""

    def sample(self, noise: Float[Tensor, "*L N A"]) -> Float[Tensor, "*L N A"]:
        """Return a draw, given Gumbel noise for the choices and normal noise for the numbers."""
        numbers = None if self.numbers is None else self.numbers.sample(noise)
        return self._joined(self.logits + noise, numbers)

    def mode(self) -> Float[Tensor, "*L N A"]:
        """Return the most likely option of each choice, and the mean of each number."""
        return self._joined(self.logits, None if self.numbers is None else self.numbers.mode())

    def log_prob(self, actions: Float[Tensor, "*L N A"]) -> Float[Tensor, "*L N"]:
        """Return the log-probability of the choices and the log-density of the numbers."""
        chosen = (actions * self.log_p()).sum(dim=-1)
        return chosen if self.numbers is None else chosen + self.numbers.log_prob(actions)

    def executed_log_prob(self, actions: Float[Tensor, "*L N A"]) -> Float[Tensor, "*L N"]:
        """Return the log-probability of actions as an environment receives them; see `Gaussian`."""
        chosen = (actions * self.log_p()).sum(dim=-1)
        return chosen if self.numbers is None else chosen + self.numbers.executed_log_prob(actions)

    def entropy(self) -> Float[Tensor, "*L N"]:
        """Return the entropy in nats."""
        log_p = self.log_p()
        entropy = -(self.parts.is_choice * log_p.exp() * log_p).sum(dim=-1)
        return entropy if self.numbers is None else entropy + self.numbers.entropy()

    def explicit(self, actions: Float[Tensor, "*L N A"]) -> ExplicitPolicy:
        """Return log-probabilities and entropy with their derivatives, those of `Categorical` for
        each choice and of `Gaussian` for the numbers."""
        parts = self.parts
        log_p = self._by_choice(self.logits).log_softmax(dim=-1)
        p = log_p.exp()
        of_choices = (p * log_p).sum(dim=-1, keepdim=True).neg_()
        log_probs = (actions * parts.by_column(log_p)).sum(dim=-1)
        entropy = (of_choices.squeeze(-1) * parts.exists).sum(dim=-1)
        numbers = None if self.numbers is None else self.numbers.explicit(actions)
        if numbers is not None:
            log_probs, entropy = log_probs + numbers.log_probs, entropy + numbers.entropy

        def backward(by_log_prob: Tensor, by_entropy: Tensor | None) -> Tensor:
            slope = (actions * parts.is_choice - parts.by_column(p)) * by_log_prob.unsqueeze(-1)
            if by_entropy is not None:
                falls = parts.by_column((log_p + of_choices).mul_(p))
                slope -= falls * by_entropy.unsqueeze(-1)
            if self.legal is not None:
                slope = slope.masked_fill(~self.legal, 0.0)
            return slope if numbers is None else slope + numbers.backward(by_log_prob, by_entropy)

        return ExplicitPolicy(log_probs, entropy, backward)

    def log_p(self) -> Float[Tensor, "*L N A"]:
        """Return the log-probability of every option among its choice's; zero for numbers."""
        return self.parts.by_column(self._by_choice(self.logits).log_softmax(dim=-1))

    def _by_choice(self, scores: Tensor) -> Float[Tensor, "*L N P K"]:
        return self.parts.by_choice(scores, torch.finfo(scores.dtype).min)

    def _joined(self, scores: Tensor, numbers: Tensor | None) -> Float[Tensor, "*L N A"]:
        """Return the best options by `scores`, and numbers, in one array."""
        by_choice = self._by_choice(scores)
        best = by_choice.argmax(dim=-1, keepdim=True)
        chosen = torch.zeros_like(by_choice).scatter_(-1, best, 1.0)
        choices = self.parts.by_column(chosen)
        return choices if numbers is None else choices + numbers


Distribution = Categorical | Gaussian | Composite
"""Of the actions of all agents."""


class _NetworkActor(nn.Module):
    """An `Actor` of one network, common to both kinds of actions."""

    present: Tensor

    def __init__(
        self, spec: EnvSpec, config: NetworkConfig, norm: TeamNorm, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.norm = norm
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
        self.passes = ExplicitMLP(self.body) if has_explicit_passes(self.body) else None
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

    def forward(self, obs: Float[Tensor, "*L N O"]) -> Float[Tensor, "*L N A"]:
        """Return the network's outputs for standardised observations."""
        return (self.passes or self.body)(obs)

    def unroll(
        self,
        obs: Float[Tensor, "T *B N O"],
        hidden: Float[Tensor, "*B N H"],
        starts: Bool[Tensor, "T *B"],
    ) -> tuple[Float[Tensor, "T *B N A"], Float[Tensor, "T *B N H"]]:
        """Return the outputs of successive steps and the hidden state after each."""
        return self.body(obs, hidden, starts)

    def initial_hidden(self, num_envs: int) -> Float[Tensor, "E N H"] | None:
        """Return the hidden state at the start of an episode; None for a feed-forward policy."""
        return initial_hidden(self.body, num_envs)

    def act(
        self,
        obs: Float[Tensor, "*L N O"],
        hidden: Float[Tensor, "*L N H"] | None = None,
        mask: Bool[Tensor, "*L N A"] | None = None,
        noise: Tensor | None = None,
    ) -> tuple[Tensor, Float[Tensor, "*L N"], Float[Tensor, "*L N H"] | None]:
        """Return actions, their log-probabilities and the next hidden state; see `Actor`."""
        policy, hidden = self.step_distribution(obs, hidden, mask)
        actions = policy.mode() if noise is None else policy.sample(noise)
        return actions, policy.log_prob(actions), hidden

    def step_distribution(
        self,
        obs: Float[Tensor, "*L N O"],
        hidden: Float[Tensor, "*L N H"] | None = None,
        mask: Bool[Tensor, "*L N A"] | None = None,
    ) -> tuple[Distribution, Float[Tensor, "*L N H"] | None]:
        """Return the distribution from which `act` draws, and the next hidden state."""
        outputs, hidden = self._step(self.norm.obs(obs), hidden)
        return self.distribution(outputs, mask), hidden

    def log_prob(
        self,
        obs: Float[Tensor, "*L N O"],
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
        return self.body.step(obs, hidden)


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


class CompositeLayout(nn.Module):
    """The parts of a team's composite actions; its buffers are on the device of its module."""

    columns: Tensor
    slots: Tensor
    is_choice: Tensor
    exists: Tensor
    is_number: Tensor

    def __init__(self, spec: EnvSpec) -> None:
        super().__init__()
        layout = part_layout(spec.action_parts)
        arrays = {
            "columns": layout.columns.reshape(spec.num_agents, -1),
            "slots": layout.slots,
            "is_choice": layout.is_choice,
            "exists": layout.exists,
            "is_number": layout.is_number,
        }
        for name, array in arrays.items():
            self.register_buffer(name, torch.from_numpy(array), persistent=False)
        self.has_numbers = bool(layout.is_number.any())

    def distribution(
        self,
        outputs: Float[Tensor, "*L M A"],
        log_std: Float[Tensor, "M A"],
        mask: Bool[Tensor, "*L M A"] | None = None,
        agents: slice = EVERYONE,
    ) -> Composite:
        """Return the distribution of some agents' actions, of which `outputs` are the logits and
        the means."""
        parts = Parts(self.columns, self.slots, self.is_choice, self.exists).of(agents)
        numbers = None
        if self.has_numbers:
            numbers = Gaussian(outputs, log_std, self.is_number[agents])
        if mask is not None:
            outputs = outputs.masked_fill(~mask, torch.finfo(outputs.dtype).min)
        return Composite(outputs, parts, numbers, mask)


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
