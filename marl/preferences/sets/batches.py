"""Labelled batches from a preference set, to train a reward model and to measure it.

Axes: M episodes, K sampled steps, B pairs.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from marl.config import RewardConfig
from marl.preferences.sampling import sampled
from marl.preferences.sets.answers import Answer
from marl.preferences.sets.archive import EpisodeArchive
from marl.types import LabelledSegments


class SetBatches:
    """The answered pairs of a set, split by episode.

    A pair with a held-out episode is never trained on, whichever its other episode is: answers of
    people are few, and this wastes none. In an exported run both are always of one side.
    """

    def __init__(
        self,
        archive: EpisodeArchive,
        answers: Sequence[Answer],
        config: RewardConfig,
        max_steps: int,
        generator: torch.Generator,
    ) -> None:
        self.archive = archive
        self.config = config
        self.max_steps = max_steps
        self.generator = generator
        known = set(archive.numbers.tolist())
        given = [answer for answer in answers if answer.label is not None]
        usable = [a for a in given if a.first in known and a.second in known]
        self.num_skipped = len(answers) - len(given)
        """Answers that prefer neither and are no tie."""
        self.num_orphaned = len(given) - len(usable)
        """Answers about episodes that are not there."""
        device = archive.numbers.device
        self.first = torch.tensor([a.first for a in usable], dtype=torch.int64, device=device)
        self.second = torch.tensor([a.second for a in usable], dtype=torch.int64, device=device)
        labels = [a.label for a in usable]
        self.labels = torch.tensor(labels, dtype=torch.float32, device=device)
        self.held_out = archive.is_held_out(self.first) | archive.is_held_out(self.second)

    def batch(self, *, held_out: bool = False) -> LabelledSegments | None:
        """Return random answered pairs, M/2 of them at most; None if there is none."""
        first, second, labels = self.pairs(held_out=held_out)
        if len(labels) == 0:
            return None
        order = torch.randperm(len(labels), generator=self.generator, device=labels.device)
        rows = order[: self.config.batch_episodes // 2]
        numbers, places = torch.stack((first[rows], second[rows])).unique(return_inverse=True)
        steps, weights, lengths = sampled(
            self.archive.episodes(numbers), self.config, self.max_steps, self.generator
        )
        return LabelledSegments(
            transitions=steps,
            step_weights=weights,
            lengths=lengths,
            first=places[0],
            second=places[1],
            labels=labels[rows],
        )

    def pairs(
        self, *, held_out: bool
    ) -> tuple[Int64[Tensor, "B"], Int64[Tensor, "B"], Float[Tensor, "B"]]:
        """Return the episodes' numbers and the label of every pair of one side of the split."""
        rows = self.held_out == held_out
        return self.first[rows], self.second[rows], self.labels[rows]
