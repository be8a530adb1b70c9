"""Scores of whole episodes, from all of their steps.

Axes: M episodes, L steps.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from marl.episodes import Episodes
from marl.preferences.sampling import in_order
from marl.rewards.learner import RewardLearner

ROWS_AT_ONCE = 65_536
"""Steps that are scored in one pass."""


def whole_scores(learner: RewardLearner, episodes: Episodes) -> Float[Tensor, "M"]:
    """Return S = (alpha / T_max) * sum_t R_t of each episode, nothing sampled."""
    longest = int(episodes.lengths.max()) if len(episodes) else 1
    at_once = max(1, ROWS_AT_ONCE // longest)
    scores = [torch.zeros(0, device=episodes.lengths.device)]
    for start in range(0, len(episodes), at_once):
        rows = torch.arange(start, min(start + at_once, len(episodes)))
        part = episodes.rows(rows.to(episodes.lengths.device))
        steps = part.transitions()
        offsets = torch.arange(steps.terminated.shape[1], device=part.lengths.device)
        offsets = offsets.expand(steps.terminated.shape)
        steps = in_order(steps, offsets, learner.config)
        weights = (offsets < part.lengths.unsqueeze(-1)).to(torch.float32)
        scores.append(learner.scores(steps, weights, part.lengths))
    return torch.cat(scores)
