"""Distributions of a team's actions, and their derivatives.

Axes: N agents, M of them, A actions; P choices of a composite action, K options of the largest;
``*L`` any leading axes, R their product.
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

EVERYONE = slice(None)
_HALF_LOG_2_PI = 0.5 * math.log(2.0 * math.pi)


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

    def draw(
        self, noise: Float[Tensor, "*L N A"]
    ) -> tuple[Int64[Tensor, "*L N"], Float[Tensor, "*L N"]]:
        """Return `sample(noise)` and its log-probability."""
        actions = self.sample(noise)
        return actions, self.log_prob(actions)

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
        return self._present(torch.addcmul(self.mean, noise, self.log_std.exp()))

    def draw(
        self, noise: Float[Tensor, "*L N A"]
    ) -> tuple[Float[Tensor, "*L N A"], Float[Tensor, "*L N"]]:
        """Return `sample(noise)` and its log-density, whose z is the noise."""
        density = noise.square().mul_(-0.5).sub_(self.log_std + _HALF_LOG_2_PI)
        return self.sample(noise), self._present(density).sum(dim=-1)

    def mode(self) -> Float[Tensor, "*L N A"]:
        """Return the mean."""
        return self._present(self.mean)

    def log_prob(self, actions: Float[Tensor, "*L N A"]) -> Float[Tensor, "*L N"]:
        """Return the log-density, summed over the agent's own dimensions."""
        standardised = (actions - self.mean) * (-self.log_std).exp()
        density = -0.5 * standardised**2 - self.log_std - _HALF_LOG_2_PI
        return self._present(density).sum(dim=-1)

    def executed_log_prob(self, actions: Float[Tensor, "*L N A"]) -> Float[Tensor, "*L N"]:
        """Return the log-probability of actions as an environment receives them, in [-1, 1].

        Draws beyond a bound are clipped to it, so that an action at a bound has the probability of
        all of them; one in between has a density. Summed over the agent's own dimensions.
        """
        inverse = (-self.log_std).exp()
        z = (actions - self.mean) * inverse
        density = -0.5 * z**2 - self.log_std - _HALF_LOG_2_PI
        above = torch.special.log_ndtr((self.mean - 1.0) * inverse)
        below = torch.special.log_ndtr((-1.0 - self.mean) * inverse)
        chosen = torch.where(actions >= 1.0, above, torch.where(actions <= -1.0, below, density))
        return self._present(chosen).sum(dim=-1)

    def entropy(self) -> Float[Tensor, "*L N"]:
        """Return the entropy in nats, summed over the agent's own dimensions."""
        per_dim = self.log_std + (_HALF_LOG_2_PI + 0.5)
        return self._present(per_dim).sum(dim=-1).expand(self.mean.shape[:-1])

    def explicit(self, actions: Float[Tensor, "*L N A"]) -> ExplicitPolicy:
        """Return log-probabilities and entropy with their derivatives, with z = (a - mean) / std:

        d log p / d mean = z / std,    d log p / d log std = z^2 - 1,    d H / d log std = 1.
        """
        inverse = (-self.log_std).exp()
        z = (actions - self.mean) * inverse
        density = -0.5 * z**2 - self.log_std - _HALF_LOG_2_PI

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

    def by_choice(self, x: Float[Tensor, "*L N A"], fill: float) -> Float[Tensor, "N P K R"]:
        """Return columns by the choice they belong to, `fill` where there are none.

        Rows come last: whole rows are gathered, and a softmax along few options is far faster.
        """
        agents, size = self.is_choice.shape
        flat = x.reshape(-1, agents * size).t()
        padded = torch.cat((flat, flat.new_full((1, flat.shape[1]), fill)))
        columns = self.columns + size * self._agents()
        columns = columns.masked_fill(self.columns == size, agents * size)
        found = padded.index_select(0, columns.flatten())
        return found.view(agents, self.exists.shape[1], -1, flat.shape[1])

    def by_column(
        self, x: Float[Tensor, "N P K R"], like: Float[Tensor, "*L N A"]
    ) -> Float[Tensor, "*L N A"]:
        """Return what `by_choice` made of a tensor `like` this as columns again; zero for numbers.

        The result may stand in memory as `by_choice` has it.
        """
        slots = self.slots + self.columns.shape[1] * self._agents()
        found = x.flatten(0, 2).index_select(0, slots.flatten())
        return found.mul_(self.is_choice.view(-1, 1)).t().reshape(like.shape)

    def _agents(self) -> Int64[Tensor, "N 1"]:
        return torch.arange(len(self.columns), device=self.columns.device).unsqueeze(-1)

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

    def draw(
        self, noise: Float[Tensor, "*L N A"]
    ) -> tuple[Float[Tensor, "*L N A"], Float[Tensor, "*L N"]]:
        """Return `sample(noise)` and its log-probability."""
        actions = self.sample(noise)
        return actions, self.log_prob(actions)

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
        log_p = self._by_choice(self.logits).log_softmax(dim=2)
        p = log_p.exp()
        of_choices = (p * log_p).sum(dim=2, keepdim=True).neg_()
        log_probs = (actions * parts.by_column(log_p, actions)).sum(dim=-1)
        entropy = (of_choices.squeeze(2) * parts.exists.unsqueeze(-1)).sum(dim=1)
        entropy = entropy.t().reshape(log_probs.shape)
        numbers = None if self.numbers is None else self.numbers.explicit(actions)
        if numbers is not None:
            log_probs, entropy = log_probs + numbers.log_probs, entropy + numbers.entropy

        def backward(by_log_prob: Tensor, by_entropy: Tensor | None) -> Tensor:
            chosen = actions * parts.is_choice
            slope = (chosen - parts.by_column(p, actions)).mul_(by_log_prob.unsqueeze(-1))
            if by_entropy is not None:
                falls = parts.by_column((log_p + of_choices).mul_(p), actions)
                slope -= falls.mul_(by_entropy.unsqueeze(-1))
            if self.legal is not None:
                slope = slope.masked_fill(~self.legal, 0.0)
            return slope if numbers is None else slope + numbers.backward(by_log_prob, by_entropy)

        return ExplicitPolicy(log_probs, entropy, backward)

    def log_p(self) -> Float[Tensor, "*L N A"]:
        """Return the log-probability of every option among its choice's; zero for numbers."""
        log_p = self._by_choice(self.logits).log_softmax(dim=2)
        return self.parts.by_column(log_p, self.logits)

    def _by_choice(self, scores: Tensor) -> Float[Tensor, "N P K R"]:
        return self.parts.by_choice(scores, torch.finfo(scores.dtype).min)

    def _joined(self, scores: Tensor, numbers: Tensor | None) -> Float[Tensor, "*L N A"]:
        """Return the best options by `scores`, and numbers, in one array."""
        by_choice = self._by_choice(scores)
        best = by_choice.argmax(dim=2, keepdim=True)
        chosen = torch.zeros_like(by_choice).scatter_(2, best, 1.0)
        choices = self.parts.by_column(chosen, scores)
        return choices if numbers is None else choices + numbers


Distribution = Categorical | Gaussian | Composite
"""Of the actions of all agents."""


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
