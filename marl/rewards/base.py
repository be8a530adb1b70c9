"""What a reward model is: the base class for yours, and that of ours with a value function.

Axes: M episodes, K sampled steps, N agents, H hidden units; ``*L`` any leading axes: (T, E) of a
rollout or (M, K) of a batch.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from envs import EnvSpec
from marl.config import ConfigError
from marl.data.types import BatchShares, EpisodeBatch, Rewards, Transitions
from marl.utils.plugins import PluginError

MAX_RECURRENT_STEPS = 500
"""Longest episodes, in steps, that a recurrent model is fitted on: it reads whole ones."""

PolicySampler = Callable[[Transitions], tuple[Tensor, Tensor]]
"""Draws actions of the current policy at some transitions: (actions, log-probabilities)."""


class RewardModel(nn.Module, ABC):
    """A module from transitions to rewards; built as ``Class(spec)`` if it is yours.

    It sees no reward and no return. Its parameters are fitted by the loss that ``reward.loss``
    names. A plain `nn.Module` with the same `forward` serves as well.
    """

    @abstractmethod
    def forward(self, transitions: Transitions) -> Rewards | Tensor:
        """Return the global reward (*L) and, if the model splits it, the local ones (*L, N).

        A bare tensor is the global reward.
        """


@dataclass(frozen=True, kw_only=True)
class TeamValue:
    """Q_tot or V_tot at some steps and, of a linear mixer, what it is made of."""

    total: Float[Tensor, "*L"]
    utilities: Float[Tensor, "*L N"]
    """q_i or v_i, which were mixed."""
    weights: Float[Tensor, "*L N"]
    """w_i(s) >= 0; ones where the mixer is not linear."""
    bias: Float[Tensor, "*L"]
    """b(s)."""
    hidden: Float[Tensor, "*L N H"] | None = None
    """The utilities' hidden state after each step. None: they are feed-forward."""


class ValueBasedReward(RewardModel):
    """R = Q(s, a) - gamma_R (1 - terminated) V(s'), the inverse soft Bellman equation (IPL).

    The loss of the rewards trains Q alone: V at s' comes from target networks and carries no
    gradient, because a V trained as fast as Q follows Q, and the scale of R drifts. `value_loss`
    draws V to the soft value of Q. At gamma_R = 0 there is no V, and R = Q is an explicit reward.
    """

    gamma: float
    """gamma_R."""

    def forward(self, transitions: Transitions) -> Rewards:
        """Return R and, where the model splits it, r_i."""
        q, next_v = self.q_tot(transitions), self.next_v_tot(transitions)
        return self.rewards(transitions, q, next_v)[0]

    @abstractmethod
    def q_tot(self, steps: Transitions) -> TeamValue:
        """Return Q(s, a) and its parts."""

    @abstractmethod
    def next_v_tot(self, steps: Transitions) -> TeamValue | None:
        """Return gamma_R (1 - terminated) V(s') and its parts, without gradient; None without V.

        The discount stands in the total, the utilities and the bias, once in each.
        """

    @abstractmethod
    def rewards(
        self, steps: Transitions, q: TeamValue, next_v: TeamValue | None
    ) -> tuple[Rewards, Tensor]:
        """Return R = q - next_v with its local parts, and (*L) the bias part of R."""

    def advantages(self, steps: Transitions) -> Rewards:
        """Return Q - V and its local parts, in place of what critics would make of R.

        Raises `ValueError` where V is not on the scale of Q.
        """
        raise ValueError(f"{type(self).__name__} has no V in the critics' place")

    @abstractmethod
    def value_parameters(self) -> list[nn.Parameter]:
        """Return what `value_loss` trains; empty where there is no V."""

    @abstractmethod
    def value_loss(
        self,
        steps: Transitions,
        q: TeamValue,
        weights: Tensor,
        policy: PolicySampler,
        shares: BatchShares | None = None,
    ) -> Tensor:
        """Return the loss of V given Q; `weights` (M, K) marks padding by zero.

        `shares` are those of the batch, where several processes train.
        """

    @abstractmethod
    def update_targets(self, rate: float) -> Tensor:
        """Move the target networks by the Polyak rate; return the distance of V from its own."""


def check_episode_length(spec: EnvSpec, setting: str) -> None:
    """Raise `ConfigError` where episodes are too long for a recurrent model to be fitted on."""
    if spec.max_steps > MAX_RECURRENT_STEPS:
        raise ConfigError(
            f'{setting}: "gru" is fitted on whole episodes, of at most {MAX_RECURRENT_STEPS} '
            f"steps, and those of {spec.name} have up to {spec.max_steps}; give the environment a "
            f'smaller max_steps or set {setting} = "none"'
        )


def checked_rewards(returned: object, name: str, transitions: Transitions) -> Rewards:
    """Return what a plugged-in model gave as `Rewards`, or raise `PluginError`.

    A bare tensor counts as the team's reward.
    """
    lead = tuple(transitions.terminated.shape)
    rewards = Rewards(team=returned) if isinstance(returned, Tensor) else returned
    if not isinstance(rewards, Rewards):
        raise PluginError(
            f"reward model {name} returned {type(returned).__name__}, expected marl.Rewards or "
            f"a tensor of shape {lead}"
        )
    agents = transitions.obs.shape[-2]
    for part, tensor, shape in (
        ("team", rewards.team, lead),
        ("local", rewards.local, (*lead, agents)),
    ):
        if tensor is None:
            continue
        if tuple(tensor.shape) != shape:
            raise PluginError(
                f"reward model {name} returned {part} rewards of shape {tuple(tensor.shape)}, "
                f"expected {shape}"
            )
        if not tensor.is_floating_point():
            raise PluginError(
                f"reward model {name} returned {part} rewards of dtype {tensor.dtype}, "
                "expected a floating dtype"
            )
    return rewards


@torch.no_grad()
def polyak_update(online: nn.Module, target: nn.Module, rate: float) -> Tensor:
    """Update a target network, target += rate (online - target), and return their distance.

    The distance is the Euclidean norm over all parameters, after the move.
    """
    distances: list[Tensor] = []
    for source, moved in zip(online.parameters(), target.parameters(), strict=True):
        moved.lerp_(source, rate)
        distances.append((source - moved).norm())
    return torch.stack(distances).norm()


@runtime_checkable
class Batches(Protocol):
    """Where batches of episodes come from."""

    def batch(self, *, held_out: bool = False) -> EpisodeBatch | None:
        """Return a batch to train on or to measure with; None while there is none."""
        ...
