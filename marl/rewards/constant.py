"""IRCR: every step of an episode gets the episode's normalised return.

Axes: T time, E environments, B finished episodes; ``*L`` any leading axes.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from envs import EnvSpec
from marl.config import RewardConfig
from marl.data.types import FinishedEpisodes, Rewards, Transitions
from marl.nn.normalisation import TeamNorm
from marl.rewards.base import RewardModel


class ConstantReward(RewardModel):
    """r_t = (G - G_min) / (G_max - G_min), constant over the episode (arXiv 2010.12718).

    G_min and G_max are the least and largest return so far. It has no parameters. Steps of an
    episode that has not ended, whose return is unknown, get the mean of what episodes got so far,
    so that they are neither better nor worse than others; `learner.rollout_steps` should therefore
    be a multiple of the episodes' length.
    """

    low: Tensor
    high: Tensor
    total: Tensor
    count: Tensor

    def __init__(
        self,
        spec: EnvSpec,
        config: RewardConfig,
        gamma: float,
        norm: TeamNorm,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        for name, value in (("low", math.inf), ("high", -math.inf), ("total", 0.0), ("count", 0.0)):
            self.register_buffer(name, torch.tensor(value, dtype=torch.float64))

    def forward(self, transitions: Transitions) -> Rewards:
        """Return what steps of unknown return get."""
        unknown = self._normalised(self.total / self.count.clamp(min=1.0))
        return Rewards(team=unknown.expand(transitions.terminated.shape).clone())

    def update(self, returns: Float[Tensor, "B"]) -> None:
        """Take the returns of newly finished episodes into account."""
        if len(returns) == 0:
            return
        returns = returns.to(torch.float64)
        self.low.copy_(torch.minimum(self.low, returns.min()))
        self.high.copy_(torch.maximum(self.high, returns.max()))
        self.total.add_(returns.sum())
        self.count.add_(len(returns))

    def rollout_rewards(
        self, transitions: Transitions, done: Bool[Tensor, "T E"], episodes: FinishedEpisodes
    ) -> Rewards:
        """Return the rewards of a rollout in which `episodes` ended."""
        team = self(transitions).team
        ends = torch.zeros_like(team)
        ends[episodes.end_time, episodes.env] = self._normalised(episodes.returns)
        value = team[-1]
        for t in reversed(range(len(team))):
            value = torch.where(done[t], ends[t], value)
            team[t] = value
        return Rewards(team=team)

    def _normalised(self, returns: Float[Tensor, "*L"]) -> Float[Tensor, "*L"]:
        """Return (G - G_min) / (G_max - G_min); 0 while all returns are equal."""
        span = self.high - self.low
        share = (returns - self.low) / torch.where(span > 0.0, span, torch.ones_like(span))
        return torch.where(span > 0.0, share, torch.zeros_like(share)).to(torch.float32)
