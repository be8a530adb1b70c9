"""How many pairs to ask, and when."""

from typing import Any

from marl.config import PreferenceConfig

DECAY = 10.0
"""A hyperbolic schedule ends at 1 / (1 + DECAY) of the rate it begins with."""


class Budget:
    """Counts the pairs that are due and those that were asked, up to `max_labels`."""

    def __init__(self, config: PreferenceConfig) -> None:
        self.config = config
        self.due = 0.0
        """Pairs the schedule has granted so far, a fraction of one included."""
        self.asked = 0
        """Pairs asked so far."""

    def grant(self, progress: float) -> tuple[int, int]:
        """Return how many pairs to ask now: to train on, and held out to measure with.

        `progress` is the share of the run that is over. Both sides are rounded in the long run,
        not each time, so that small rates come to their share.
        """
        rate: float = self.config.queries_per_iteration
        if self.config.schedule == "hyperbolic":
            rate /= 1.0 + DECAY * progress
        before, self.due = self.due, self.due + rate
        share = 1.0 / self.config.holdout_every
        held_out = round(self.due * share) - round(before * share)
        train = round(self.due * (1.0 - share)) - round(before * (1.0 - share))
        if self.config.max_labels:
            left = max(0, self.config.max_labels - self.asked)
            held_out = min(held_out, left)
            train = min(train, left - held_out)
        return train, held_out

    def state_dict(self) -> dict[str, Any]:
        """Return both counts."""
        return {"due": self.due, "asked": self.asked}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self.due, self.asked = state["due"], state["asked"]
