"""Labellers made of labellers.

Axes: B pairs, V voters.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from marl.preferences.labellers import EpisodePairs, Labeller, checked_labels, name_of


class Cascade:
    """Asks the first labeller, and each next one only about what those before left open.

    Open is a pair without an answer (NaN) if `pass_unanswered`, and one called a tie if
    `pass_ties`; that tie stands where no later one answers.
    """

    def __init__(
        self, *labellers: Labeller, pass_unanswered: bool = True, pass_ties: bool = False
    ) -> None:
        if not labellers:
            raise ValueError("Cascade got no labellers; give at least one")
        if not (pass_unanswered or pass_ties):
            raise ValueError(
                "Cascade got pass_unanswered = False and pass_ties = False, which ask none but the "
                "first labeller; set one of them"
            )
        self.parts = labellers
        """In the order in which they are asked."""
        self.pass_unanswered = pass_unanswered
        self.pass_ties = pass_ties
        self.asked = [0] * len(labellers)
        """Pairs that each was asked about so far."""

    def __call__(self, pairs: EpisodePairs) -> Float[Tensor, "B"]:
        labels = torch.full_like(pairs.first.returns, torch.nan)
        is_open = torch.ones_like(labels, dtype=torch.bool)
        for stage, labeller in enumerate(self.parts):
            rows = is_open.nonzero().squeeze(-1)
            if len(rows) == 0:
                break
            self.asked[stage] += len(rows)
            answers = checked_labels(labeller, name_of(labeller), pairs.rows(rows))
            answers = answers.to(labels.device)
            labels[rows] = torch.where(answers.isnan(), labels[rows], answers)
            is_open = (labels.isnan() & self.pass_unanswered) | ((labels == 0.5) & self.pass_ties)
        return labels

    def metrics(self) -> dict[str, float]:
        """Return how many pairs each labeller was asked about so far."""
        return {f"cascade_{stage}_asked": float(n) for stage, n in enumerate(self.asked)}

    def state_dict(self) -> dict[str, Any]:
        """Return the counts."""
        return {"asked": list(self.asked)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self.asked = list(state["asked"])


class Vote:
    """Asks every labeller and answers by their mean; abstains where too few answer."""

    def __init__(self, *labellers: Labeller, at_least: int = 1) -> None:
        if not 1 <= at_least <= len(labellers):
            raise ValueError(
                f"Vote got {len(labellers)} labellers and at_least = {at_least}; it takes "
                "from 1 to all of them"
            )
        self.parts = labellers
        """The voters."""
        self.at_least = at_least
        """Answers needed."""

    def __call__(self, pairs: EpisodePairs) -> Float[Tensor, "B"]:
        votes: Float[Tensor, "V B"] = torch.stack(
            [
                checked_labels(labeller, name_of(labeller), pairs).to(pairs.first.returns.device)
                for labeller in self.parts
            ]
        )
        enough = (~votes.isnan()).sum(dim=0) >= self.at_least
        return votes.nanmean(dim=0).masked_fill(~enough, torch.nan)
