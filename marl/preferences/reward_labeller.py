"""A reward model learned before as labeller: it prefers the episode that it scores higher.

Axes: B pairs, P episodes in the cache.
"""

from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from marl.config.preferences import ModelConfig
from marl.data.types import EpisodeReplay, Episodes
from marl.preferences.labellers import EpisodePairs
from marl.rewards.learner import RewardLearner
from marl.rewards.scoring import score_episodes

CACHED_EPISODES = 16_384
"""Newest episodes whose scores are cached: each is scored once, however often it is asked about."""


class LengthControl:
    """Finds the c at which S - c * length, of the longer less that of the shorter episode, has
    mean zero over all pairs seen:

        c = sum (S_long - S_short) / sum (L_long - L_short)

    After the length control of implicit rewards passed on between tasks (arXiv 2503.04647).
    """

    def __init__(self) -> None:
        self.score_gaps = 0.0
        """Sum of S_long - S_short."""
        self.length_gaps = 0.0
        """Sum of L_long - L_short."""

    @property
    def constant(self) -> float:
        """c; 0 while all pairs were of equal length."""
        return self.score_gaps / self.length_gaps if self.length_gaps else 0.0

    def update(self, score_gaps: Float[Tensor, "B"], length_gaps: Int64[Tensor, "B"]) -> None:
        """Take pairs into account, whichever of the two came first."""
        known = score_gaps.isfinite()
        scores, lengths = score_gaps[known].to(torch.float64), length_gaps[known]
        self.score_gaps += float((scores * lengths.sign()).sum())
        self.length_gaps += float(lengths.abs().sum())

    def state_dict(self) -> dict[str, Any]:
        """Return both sums."""
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        vars(self).update(state)


class RewardLabeller:
    """Prefers the episode to which a reward model, learned before, gives the larger score.

    The score is the model's S over all steps of the episode, less a constant times its length.
    """

    def __init__(self, config: ModelConfig, learner: RewardLearner) -> None:
        self.config = config
        self.learner = learner
        self.control = LengthControl()
        self._numbers = torch.zeros(0, dtype=torch.int64)
        """(P,) ascending."""
        self._scores = torch.zeros(0)
        """(P,) of these episodes."""
        self._replay: EpisodeReplay | None = None
        """Where those episodes lie; None: nowhere asked yet, or restored."""

    def __call__(self, pairs: EpisodePairs) -> Float[Tensor, "B"]:
        first, second = self._scored(pairs.first, pairs.second)
        gaps = first - second
        lengths = pairs.first.lengths - pairs.second.lengths
        if self.config.length_control:
            self.control.update(gaps, lengths)
            gaps = gaps - self.control.constant * lengths.to(gaps.dtype)
        if self.config.temperature > 0.0:
            return torch.sigmoid(gaps / self.config.temperature)
        return (0.5 + 0.5 * gaps.sign()).masked_fill(gaps.isnan(), torch.nan)

    def _scored(self, first: Episodes, second: Episodes) -> tuple[Tensor, Tensor]:
        """Return the scores (B,) of both sides."""
        if self._replay is not None and self._replay is not first.replay:
            self._numbers, self._scores = self._numbers[:0], self._scores[:0]
        self._replay = first.replay
        device = first.numbers.device
        self.learner.model.to(device)
        self._numbers, self._scores = self._numbers.to(device), self._scores.to(device)
        self._score_new(first)
        self._score_new(second)
        scores = [
            self._scores[torch.searchsorted(self._numbers, s.numbers)] for s in (first, second)
        ]
        self._numbers = self._numbers[-CACHED_EPISODES:]
        self._scores = self._scores[-CACHED_EPISODES:]
        return scores[0], scores[1]

    def _score_new(self, episodes: Episodes) -> None:
        """Score those episodes that were not asked about before, each once."""
        numbers, places = episodes.numbers.unique(return_inverse=True)
        rows = torch.zeros_like(numbers)
        rows[places] = torch.arange(len(places), device=rows.device)
        rows = rows[~torch.isin(numbers, self._numbers)]
        if len(rows) == 0:
            return
        fresh = episodes.rows(rows)
        known = torch.cat((self._numbers, fresh.numbers))
        scores = torch.cat((self._scores, score_episodes(self.learner, fresh)))
        self._numbers, order = known.sort()
        self._scores = scores[order]

    def metrics(self) -> dict[str, float]:
        """Return the constant c of the length control; 0 where it is switched off."""
        return {"length_constant": self.control.constant}

    def state_dict(self) -> dict[str, Any]:
        """Return both sums, the cached scores, and the model itself, whose run may train on."""
        return {
            "control": self.control.state_dict(),
            "numbers": self._numbers,
            "scores": self._scores,
            "model": self.learner.model.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly from `state_dict()`, with the model of then."""
        self.control.load_state_dict(state["control"])
        self._numbers, self._scores = state["numbers"], state["scores"]
        self._replay = None
        self.learner.model.load_state_dict(state["model"])
