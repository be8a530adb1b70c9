"""The episodes of a preference set in memory, as labellers and reward models read them.

Axes: M episodes, K sampled steps, L steps; N agents, O, S features, F facts.
"""

from collections.abc import Sequence
from dataclasses import fields

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from marl.episodes import Episodes, transitions_at
from marl.preferences.sets.episodes import EpisodeRecord
from marl.types import Transitions

_BY_STEP = ("obs", "state", "actions", "facts_on_the_way", "alive", "action_mask")


class EpisodeArchive:
    """An `EpisodeStore` that never changes: all steps of all episodes, one after another."""

    def __init__(
        self,
        numbers: Sequence[int],
        records: Sequence[EpisodeRecord],
        *,
        holdout_every: int,
        device: torch.device,
    ) -> None:
        """`numbers` ascend, and there is at least one."""
        assert len(numbers) == len(records) > 0
        self.holdout_every = holdout_every
        self.numbers = torch.tensor(numbers, device=device)
        lengths = torch.tensor([record.length for record in records], device=device)
        self.lengths = lengths
        self.starts = lengths.cumsum(0) - lengths
        given = [f.name for f in fields(records[0]) if getattr(records[0], f.name) is not None]

        def joined(name: str) -> Tensor:
            return torch.from_numpy(np.concatenate([getattr(r, name) for r in records])).to(device)

        def stacked(name: str) -> Tensor:
            return torch.from_numpy(np.stack([getattr(r, name) for r in records])).to(device)

        self._rows = {name: joined(name) for name in _BY_STEP if name in given}
        self._facts_by_step = self._rows.pop("facts_on_the_way")
        ends = ("final_obs", "final_state", "final_alive")
        self._finals = {n.removeprefix("final_"): stacked(n) for n in ends if n in given}
        self._facts = stacked("facts")
        returns = [record.episode_return for record in records]
        self._returns = torch.tensor(returns, dtype=torch.float32, device=device)
        self._terminated = torch.tensor([record.terminated for record in records], device=device)

    def available(self, *, held_out: bool = False) -> Int64[Tensor, "M"]:
        """Return the numbers of all episodes of one side of the split, in order."""
        return self.numbers[self.is_held_out(self.numbers) == held_out]

    def is_held_out(self, numbers: Int64[Tensor, "M"]) -> Bool[Tensor, "M"]:
        """Return which episodes are never trained on: every `holdout_every`-th number."""
        return numbers % self.holdout_every == self.holdout_every - 1

    def episodes(self, numbers: Int64[Tensor, "M"]) -> Episodes:
        """Return a view of some episodes, for labellers."""
        places = self._places(numbers)
        return Episodes(
            store=self,
            numbers=numbers,
            returns=self._returns[places],
            lengths=self.lengths[places],
            terminated=self._terminated[places],
            facts=self._facts[places],
        )

    def return_moments(self) -> tuple[float, float]:
        """Return mean and standard deviation of all returns; a deviation of zero as 1."""
        returns = self._returns.to(torch.float64)
        return float(returns.mean()), float(returns.std(correction=0)) or 1.0

    def final_states(self, numbers: Int64[Tensor, "M"]) -> Float[Tensor, "M S"]:
        """Return the team's state at the end of each episode."""
        return self._finals["state"][self._places(numbers)]

    def steps(self, numbers: Int64[Tensor, "M"], offsets: Int64[Tensor, "M K"]) -> Transitions:
        """Return the transitions of episodes at steps `offsets`, clamped to their last step."""
        places = self._places(numbers)
        now, is_last = self._locate(places, offsets)
        return transitions_at(
            self._rows,
            now,
            (now + 1).clamp(max=len(self._facts_by_step) - 1),
            is_last,
            {name: final[places] for name, final in self._finals.items()},
            self._terminated[places],
        )

    def facts_at(
        self, numbers: Int64[Tensor, "M"], offsets: Int64[Tensor, "M K"]
    ) -> Float[Tensor, "M K F"]:
        """Return what was known of episodes after their steps `offsets`, clamped to the last."""
        return self._facts_by_step[self._locate(self._places(numbers), offsets)[0]]

    def alive_at(
        self, numbers: Int64[Tensor, "M"], offsets: Int64[Tensor, "M K"]
    ) -> Bool[Tensor, "M K N"] | None:
        """Return who took part in the steps `offsets`, clamped to the last; None: all, always."""
        if "alive" not in self._rows:
            return None
        return self._rows["alive"][self._locate(self._places(numbers), offsets)[0]]

    def _places(self, numbers: Int64[Tensor, "M"]) -> Int64[Tensor, "M"]:
        """Return where episodes stand among all, by their numbers."""
        places = torch.searchsorted(self.numbers, numbers).clamp(max=len(self.numbers) - 1)
        unknown = self.numbers[places] != numbers
        if bool(unknown.any()):
            raise ValueError(f"the set has no episode {int(numbers[unknown][0])}")
        return places

    def _locate(
        self, places: Int64[Tensor, "M"], offsets: Int64[Tensor, "M K"]
    ) -> tuple[Int64[Tensor, "M K"], Bool[Tensor, "M K"]]:
        """Return the rows of steps, and which are the last of their episode."""
        last = (self.lengths[places] - 1).unsqueeze(-1)
        offsets = torch.minimum(offsets, last)
        return self.starts[places].unsqueeze(-1) + offsets, offsets == last
