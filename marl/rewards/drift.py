"""The guard against a value that runs away."""

import math
import warnings
from typing import Any

MEMORY = 20
"""Fits over which the preference loss is averaged."""


class DriftGuard:
    """Slows the copies of V down when the preference loss rises.

    With gamma_R near 1, V and Q can chase each other: the reward's scale grows, preferences that
    were once learned are lost again, and the loss that had fallen rises. When its running average
    stands `tolerance` nats above the lowest so far, the Polyak rate is halved and the watch
    begins anew. The first fits only fill the average. A tolerance of 0 switches the guard off.
    """

    def __init__(self, rate: float, tolerance: float) -> None:
        self.rate = rate
        self.tolerance = tolerance
        self.fits = 0
        self.average = math.nan
        self.lowest = math.inf

    def watch(self, loss: float) -> None:
        """Take one fit's mean preference loss into account."""
        self.fits += 1
        seen = min(self.fits, MEMORY)
        self.average = loss if seen == 1 else self.average + (loss - self.average) / seen
        if seen < MEMORY:
            return
        self.lowest = min(self.lowest, self.average)
        if self.tolerance > 0.0 and self.average > self.lowest + self.tolerance:
            self.rate /= 2.0
            warnings.warn(
                f"the preference loss rose from {self.lowest:.2f} to {self.average:.2f}; "
                f"reward.target_rate is halved to {self.rate:g} from here on. "
                "If it keeps rising, lower reward.gamma",
                stacklevel=2,
            )
            self.lowest = self.average

    def state_dict(self) -> dict[str, Any]:
        """Return the rate and what was seen."""
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        vars(self).update(state)
