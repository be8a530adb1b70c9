"""What became of the questions.

Axes: B pairs.
"""

import warnings
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

TIED_TURNS = 10
"""Calls of `take` without a preferred episode after which the user is told."""
RARE_SHARE, RARE_TURNS = 0.1, 30
"""The user is told after this many calls of `take` in a row in which fewer answers were no tie."""


class Tally:
    """Counts asked pairs, abstentions and ties, and warns where there is nothing to learn from."""

    def __init__(self, name: str, *, stratified: bool = False) -> None:
        """`stratified`: rare returns are drawn as often as common ones already."""
        self.name = name
        self._may_warn_of_rarity = not stratified
        self.asked = self.answered = 0
        """Pairs of the whole run, up to the latest `take`."""
        self.is_informative = False
        """Whether any answer so far was no tie."""
        self._asked = self._answered = self._decided = 0
        self._has_warned = False
        self._tied_turns = self._rare_turns = 0

    def add(self, labels: Float[Tensor, "B"]) -> None:
        """Count the answers to some pairs."""
        answered = ~labels.isnan()
        counts = torch.stack((answered, answered & (labels != 0.5))).sum(dim=1).tolist()
        self._asked += len(labels)
        self._answered += counts[0]
        self._decided += counts[1]
        self.is_informative |= counts[1] > 0

    def take(self) -> dict[str, float]:
        """Return counts since the last call; shares are NaN where nothing was asked.

        ``informative_share`` is the share of answers that are no tie. At 0 there is nothing to
        learn from: no episode is better than another yet, in the eyes of the labeller.
        """
        asked, answered, decided = self._asked, self._answered, self._decided
        self._asked = self._answered = self._decided = 0
        self.asked, self.answered = self.asked + asked, self.answered + answered
        if self.asked and not self.answered and not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"labeller {self.name} has answered none of {self.asked} pairs; the policy does "
                "not learn before the first answer",
                stacklevel=2,
            )
        self._tied_turns += answered > 0 and not self.is_informative
        if self._tied_turns == TIED_TURNS and not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"all {self.answered:,} pairs that labeller {self.name} has judged so far are ties;"
                " the policy does not learn before one episode is preferred. "
                "preferences.tie_break names facts that decide ties",
                stacklevel=2,
            )
        if answered and self.is_informative:
            self._watch_rarity(decided / answered)
        return {
            "preference/asked": float(asked),
            "preference/abstained_share": 1.0 - answered / asked if asked else float("nan"),
            "preference/informative_share": decided / answered if answered else float("nan"),
        }

    def _watch_rarity(self, informative_share: float) -> None:
        """Warn once where few answers prefer an episode, turn after turn."""
        self._rare_turns = self._rare_turns + 1 if informative_share < RARE_SHARE else 0
        if self._rare_turns == RARE_TURNS and self._may_warn_of_rarity:
            self._may_warn_of_rarity = False
            warnings.warn(
                f"labeller {self.name} calls over {1.0 - RARE_SHARE:.0%} of the pairs ties; "
                'preferences.query = "stratified" draws episodes of rare returns as often as those '
                "of common ones",
                stacklevel=3,
            )

    def state_dict(self) -> dict[str, Any]:
        """Return all counts."""
        counts = [self.asked, self.answered, self._asked, self._answered, self._decided]
        return {"counts": counts, "is_informative": self.is_informative}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self.asked, self.answered, self._asked, self._answered, self._decided = state["counts"]
        self.is_informative = state["is_informative"]
