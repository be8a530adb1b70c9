"""Scores of whole episodes, and whether they are as sure of a preference as they are right.

Axes: M episodes, L steps, B pairs, K bins.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from marl.data.replay import every_step
from marl.data.types import Episodes
from marl.rewards.learner import RewardLearner

BINS = 10


def score_episodes(learner: RewardLearner, episodes: Episodes) -> Float[Tensor, "M"]:
    """Return S = (alpha / T_max) * sum_t R_t of each episode, from all of its steps."""
    scores = [torch.zeros(0, device=episodes.lengths.device)]
    for part in every_step(episodes, reads_history=learner.reads_history):
        scores.append(learner.scores(*part))
    return torch.cat(scores)


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """Decided pairs sorted by how sure the judge is of the episode it prefers.

    The bins are equally wide and cover confidences from 0.5 (undecided) to 1; which episode of a
    pair comes first does not matter.
    """

    counts: Int64[Tensor, "K"]
    confidence: Float[Tensor, "K"]
    """Mean P(the preferred episode wins) of each bin; NaN where it is empty."""
    agreement: Float[Tensor, "K"]
    """Mean P that the labels give that episode: the share right, where labels are hard."""

    @property
    def edges(self) -> Tensor:
        """(K + 1,) bounds of the bins."""
        return torch.linspace(0.5, 1.0, len(self.counts) + 1, dtype=torch.float64)

    @property
    def error(self) -> float:
        """Expected calibration error: mean |agreement - confidence| over pairs; NaN of none."""
        return expected_calibration_error(self.counts, self.confidence, self.agreement)

    def rows(self) -> list[dict[str, Any]]:
        """Return one dict per bin; ``confidence`` and ``agreement`` are None where it is empty."""
        bounds = self.edges.tolist()
        columns = self.counts.tolist(), self.confidence.tolist(), self.agreement.tolist()
        return [
            {
                "from": low,
                "to": high,
                "pairs": count,
                "confidence": confidence if count else None,
                "agreement": agreement if count else None,
            }
            for low, high, count, confidence, agreement in zip(
                bounds[:-1], bounds[1:], *columns, strict=True
            )
        ]


def expected_calibration_error(
    counts: Int64[Tensor, "K"], confidence: Float[Tensor, "K"], agreement: Float[Tensor, "K"]
) -> float:
    """Return the mean |agreement - confidence| of bins, weighted by their counts; NaN of none."""
    gaps = (agreement - confidence).abs().nan_to_num()
    return float((counts * gaps).sum() / counts.sum())


def reliability(
    probabilities: Float[Tensor, "B"], labels: Float[Tensor, "B"], bins: int = BINS
) -> Reliability:
    """Return the reliability table of P(first preferred); pairs labelled a tie are left out."""
    decided = labels != 0.5
    probabilities = probabilities[decided].to(torch.float64)
    labels = labels[decided].to(torch.float64)
    confidence = torch.maximum(probabilities, 1.0 - probabilities)
    agreement = torch.where(probabilities > 0.5, labels, 1.0 - labels)
    agreement = agreement.masked_fill(probabilities == 0.5, 0.5)  # it prefers neither
    places = ((confidence - 0.5) * 2 * bins).to(torch.int64).clamp(max=bins - 1)
    counts = torch.bincount(places, minlength=bins)

    def mean(values: Tensor) -> Tensor:
        return torch.zeros(bins, dtype=values.dtype).index_add(0, places, values) / counts

    return Reliability(
        counts=counts,
        confidence=mean(confidence),
        agreement=mean(agreement),
    )
