"""What fitting a reward model to a preference set has come to.

Axes: B pairs.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from marl.preferences.sets.batches import SetBatches
from marl.rewards import RewardLearner
from marl.rewards.calibration import Reliability, reliability
from marl.rewards.losses import bradley_terry_loss, preference_accuracy
from marl.rewards.whole import whole_scores


@dataclass(frozen=True, kw_only=True)
class Measured:
    """How well a reward model tells the preferred episodes of some pairs."""

    pairs: int
    ties: int
    accuracy: float
    """Share of the decided pairs that it orders as the labels do; NaN of none."""
    loss: float
    """Bradley-Terry cross-entropy in nats, ties included; guessing costs 0.693."""
    calibration: Reliability

    def to_json(self) -> dict[str, Any]:
        """Return plain values; None where a number is not known."""
        return {
            "pairs": self.pairs,
            "ties": self.ties,
            "accuracy": _known(self.accuracy),
            "loss": _known(self.loss),
            "expected_calibration_error": _known(self.calibration.error),
            "reliability": self.calibration.rows(),
        }


@dataclass(frozen=True, kw_only=True)
class FitReport:
    """What `fit_reward` found."""

    preference_set: str
    environment: str
    model: str
    seed: int
    steps: int
    """Gradient steps taken."""
    episodes: int
    sources: dict[str, int]
    """Answers by who gave them, skipped ones among them."""
    skipped: int
    """Answers without a preference."""
    orphaned: int
    """Answers about episodes that are not there."""
    train: Measured
    held_out: Measured
    folder: Path | None
    """Where the model, this report and its picture are; None: nowhere."""

    def to_json(self) -> dict[str, Any]:
        """Return plain values, as ``report.json`` holds them."""
        flat = {k: v for k, v in vars(self).items() if k not in ("train", "held_out", "folder")}
        return flat | {"train": self.train.to_json(), "held_out": self.held_out.to_json()}


def measured(learner: RewardLearner, batches: SetBatches, *, held_out: bool) -> Measured:
    """Return how a model does on all pairs of one side of the split, from all of their steps."""
    first, second, labels = batches.pairs(held_out=held_out)
    numbers, places = torch.stack((first, second)).unique(return_inverse=True)
    scores = whole_scores(learner, batches.archive.episodes(numbers))
    logits = scores[places[0]] - scores[places[1]]
    return Measured(
        pairs=len(labels),
        ties=int((labels == 0.5).sum()),
        accuracy=float(preference_accuracy(logits, labels)),
        loss=float(bradley_terry_loss(logits, labels)),
        calibration=reliability(torch.sigmoid(logits.to(torch.float64)), labels),
    )


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None
