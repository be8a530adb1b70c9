"""What a reward model promises, and where what it learns from comes from.

Axes: M episodes, K sampled steps; ``*L`` any leading axes.
"""

from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from marl.data.types import EpisodeBatch, Rewards, Transitions
from marl.rewards.factored import Mixed, PolicySampler


@runtime_checkable
class RewardModel(Protocol):
    """Any `nn.Module` from transitions to rewards; built as ``Class(spec)`` if it is yours.

    It sees no reward of the environment. `fit` trains it by the Bradley-Terry loss.
    """

    def __call__(self, transitions: Transitions) -> Rewards:
        """Return the global reward (*L) and, if the model splits it, the local ones (*L, N)."""
        ...


@runtime_checkable
class ImplicitReward(RewardModel, Protocol):
    """A reward R = Q - gamma V with a value network of its own."""

    def now(self, steps: Transitions) -> Mixed:
        """Return Q at s and its parts."""
        ...

    def then(self, steps: Transitions) -> Mixed | None:
        """Return gamma (1 - terminated) V at s' and its parts, without gradient."""
        ...

    def rewards(self, steps: Transitions, now: Mixed, then: Mixed | None) -> tuple[Rewards, Tensor]:
        """Return R = now - then with its local parts, and the bias part of R."""
        ...

    def value_parameters(self) -> list[nn.Parameter]:
        """Return what `value_loss` trains; empty where there is no V."""
        ...

    def value_loss(
        self, transitions: Transitions, now: Mixed, weights: Tensor, policy: PolicySampler
    ) -> Tensor:
        """Return the loss of V given Q."""
        ...

    def update_targets(self, rate: float) -> Tensor:
        """Move the target networks by the Polyak rate; return the distance of V from its own."""
        ...


@runtime_checkable
class Batches(Protocol):
    """Where labelled batches come from."""

    def batch(self, *, held_out: bool = False) -> EpisodeBatch | None:
        """Return a batch to train on or to measure with; None while there is none."""
        ...
