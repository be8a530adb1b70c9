"""Sampled steps of finished episodes, as reward models are fitted to them.

Axes: M episodes, K sampled steps.
"""

from dataclasses import replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from marl.config import RewardConfig
from marl.episodes import Episodes
from marl.trajectories import sample_steps
from marl.types import History, Transitions

Sampled = tuple[Transitions, Float[Tensor, "M K"], Int64[Tensor, "M"]]
"""Steps, their weights in the estimated sum, and the lengths of the episodes."""


def sampled(
    episodes: Episodes, config: RewardConfig, max_steps: int, generator: torch.Generator
) -> Sampled:
    """Return sampled steps of some episodes, the steps' weights, and the lengths.

    Where episodes are read whole, there are as many steps as the longest one has. A reward model
    with memory always gets whole episodes, and is told which steps follow which.
    """
    count = config.sample_steps
    is_whole = config.memory != "none" or max_steps <= config.whole_episodes
    if is_whole and len(episodes):
        count = max_steps = int(episodes.lengths.max())
    offsets, weights = sample_steps(episodes.lengths, max_steps, count, generator)
    steps = episodes.store.steps(episodes.numbers, offsets)
    return in_order(steps, offsets, config), weights, episodes.lengths


def in_order(
    steps: Transitions, offsets: Int64[Tensor, "M K"], config: RewardConfig
) -> Transitions:
    """Return successive steps of whole episodes with what a model with memory must know."""
    if config.memory == "none":
        return steps
    return replace(steps, history=History(starts=offsets == 0, time_axis=1))
