"""Answered pairs.

Axes: B pairs.
"""

from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor


class PreferenceBuffer:
    """A ring of answered pairs; unanswered ones are counted and dropped."""

    def __init__(self, capacity: int, device: torch.device) -> None:
        self.first = torch.zeros(capacity, dtype=torch.int64, device=device)
        self.second = torch.zeros(capacity, dtype=torch.int64, device=device)
        self.labels = torch.zeros(capacity, device=device)
        """NaN where an answer was withdrawn."""
        self.asked_at = torch.zeros(capacity, dtype=torch.int64, device=device)
        """Time of each answer, in steps of every copy."""
        self.num_answered = 0
        self.num_unanswered = 0

    def add(
        self,
        first: Int64[Tensor, "B"],
        second: Int64[Tensor, "B"],
        labels: Float[Tensor, "B"],
        time: int = 0,
    ) -> None:
        """Keep the pairs with an answer, given at `time`, overwriting the oldest."""
        answered = ~labels.isnan()
        self.num_unanswered += int((~answered).sum())
        first, second, labels = first[answered], second[answered], labels[answered]
        count = len(labels)
        slots = torch.arange(self.num_answered, self.num_answered + count, device=labels.device)
        slots = (slots % len(self.labels))[-len(self.labels) :]
        self.first[slots] = first[-len(slots) :] if count else first
        self.second[slots] = second[-len(slots) :] if count else second
        self.labels[slots] = labels[-len(slots) :] if count else labels
        self.asked_at[slots] = time
        self.num_answered += count

    def correct(
        self,
        first: Int64[Tensor, "B"],
        second: Int64[Tensor, "B"],
        labels: Float[Tensor, "B"],
        time: int = 0,
    ) -> None:
        """Put answers, given at `time`, in place of earlier ones to the same pairs; NaN: none."""
        for one, other in zip(first.tolist(), second.tolist(), strict=True):
            earlier = (self.first == one) & (self.second == other)
            self.labels.masked_fill_(earlier, torch.nan)
        self.add(first, second, labels, time)

    def __len__(self) -> int:
        return min(self.num_answered, len(self.labels))

    def state_dict(self) -> dict[str, Any]:
        """Return the ring and its counts."""
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()` of a buffer of the same capacity."""
        for name in ("first", "second", "labels", "asked_at"):
            getattr(self, name).copy_(state[name])
        self.num_answered = state["num_answered"]
        self.num_unanswered = state["num_unanswered"]
