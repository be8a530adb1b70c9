"""Several reward models whose disagreement says which pairs are worth asking about.

Axes: M episodes, K sampled steps, V models.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from marl.data.types import EpisodeBatch, Transitions
from marl.preferences import FeedbackPipeline
from marl.rewards.base import PolicySampler
from marl.rewards.learner import RewardLearner


@dataclass(frozen=True)
class BootstrapBatches:
    """The batches one member learns from: a random part of the answers, always the same."""

    source: FeedbackPipeline
    number: int

    def batch(self, *, held_out: bool = False) -> EpisodeBatch | None:
        """Return a batch from the bootstrap sample; members are not measured."""
        return None if held_out else self.source.batch(member=self.number)


class Ensemble:
    """The run's own reward model and others, with other initial weights and bootstrapped answers.

    The others only choose the questions; no policy learns from them.
    """

    def __init__(self, own: RewardLearner, others: list[RewardLearner]) -> None:
        self.own = own
        self.others = others

    def fit(self, source: FeedbackPipeline, policy: PolicySampler) -> None:
        """Fit the others as the run's own model is fitted."""
        for number, learner in enumerate(self.others):
            learner.fit(BootstrapBatches(source, number), policy)

    def scores(
        self,
        transitions: Transitions,
        step_weights: Float[Tensor, "M K"],
        lengths: Int64[Tensor, "M"],
    ) -> Float[Tensor, "V M"]:
        """Return every model's scores of the episodes, its own first."""
        members = (self.own, *self.others)
        return torch.stack([m.scores(transitions, step_weights, lengths) for m in members])

    def state_dict(self) -> dict[str, Any]:
        """Return the others; the run's own model is saved with the run."""
        return {"others": [learner.state_dict() for learner in self.others]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()` of an ensemble of the same size."""
        for learner, saved in zip(self.others, state["others"], strict=True):
            learner.load_state_dict(saved)
