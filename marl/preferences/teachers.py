"""Simulated teachers that err (Lee et al. 2021, arXiv 2111.03026), around any labeller.

Axes: T time, E environments, B pairs or finished episodes.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from envs.rng import uniform
from marl.config import TeacherConfig
from marl.data.types import Rollout
from marl.preferences.labellers import EpisodePairs, Labeller, checked_labels, name_of


class NoisyTeacher:
    """Adds simulated human error to another labeller's answers.

    In this order: an answer is flipped by a Boltzmann choice (the more often, the closer the
    returns) or by mistake; close returns are a tie; two bad episodes get no answer. A tie of the
    other labeller stays one. What happens to a pair is a hash of the seed and the two episodes, so
    the answer is the same whenever and in whichever order the pair is asked.
    """

    def __init__(self, labeller: Labeller, config: TeacherConfig, seed: int) -> None:
        self.labellers = (labeller,)
        """The labeller whose answers are disturbed."""
        self.config = config
        self._seed = np.uint64(seed)

    def __call__(self, pairs: EpisodePairs) -> Float[Tensor, "B"]:
        mean, deviation = pairs.first.replay.return_moments()
        first = (pairs.first.returns.to(torch.float64) - mean) / deviation
        second = (pairs.second.returns.to(torch.float64) - mean) / deviation
        gap = (first - second).abs()
        (labeller,) = self.labellers
        answers = checked_labels(labeller, name_of(labeller), pairs).to(gap.device)
        choice, mistake = self._draws(pairs).unbind(dim=-1)
        is_flipped = choice < irrationality(gap, self.config.rationality)
        is_flipped ^= mistake < self.config.mistakes
        labels = torch.where(is_flipped, 1.0 - answers, answers)
        is_close = (gap < self.config.tie_within) & ~answers.isnan()
        labels = labels.masked_fill(is_close, 0.5)
        too_bad = torch.maximum(first, second) < self.config.skip_below
        return labels.masked_fill(too_bad, torch.nan)

    def _draws(self, pairs: EpisodePairs) -> Float[Tensor, "B 2"]:
        """Return two uniform numbers that belong to each unordered pair."""
        numbers = torch.stack((pairs.first.numbers, pairs.second.numbers)).cpu().numpy()
        older, newer = numbers.min(axis=0), numbers.max(axis=0)
        draws = uniform(self._seed + older.astype(np.uint64), newer, 2)
        return torch.as_tensor(draws, device=pairs.first.returns.device)


def irrationality(gap: Float[Tensor, "B"], beta: float) -> Float[Tensor, "B"]:
    """Return the probability that a Boltzmann choice picks the worse: sigmoid(-beta gap).

    `gap` is at least 0, in standard deviations of the return.
    """
    if beta == float("inf"):
        return torch.zeros_like(gap)
    return torch.sigmoid(-beta * gap)


class MyopicReturns:
    """Returns sum_t discount^(T - t) r_t of finished episodes: the latest step weighs most."""

    def __init__(self, discount: float, num_envs: int, device: torch.device) -> None:
        self.discount = discount
        self.open = torch.zeros(num_envs, dtype=torch.float64, device=device)
        """(E,) sums of the running episodes."""

    def observe(self, rollout: Rollout, rewards: Float[Tensor, "T E"]) -> Float[Tensor, "B"]:
        """Return the sum of each episode that ended, in the order of `Rollout.episodes`."""
        sums: Float[Tensor, "T E"] = torch.zeros_like(rewards, dtype=torch.float64)
        for t, done in enumerate(rollout.done):
            self.open = self.discount * self.open + rewards[t]
            sums[t] = self.open
            self.open = self.open.masked_fill(done, 0.0)
        episodes = rollout.episodes
        return sums[episodes.end_time, episodes.env].to(torch.float32)

    def state_dict(self) -> dict[str, Any]:
        """Return the open sums."""
        return {"open": self.open}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self.open = state["open"].to(self.open.device)
