"""A preference dataset: on the disk, in memory, and as labelled batches for a reward model.

Axes: M episodes, K sampled steps, B pairs; N agents, S, F features of states and facts.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, Num
from rich import get_console
from rich.progress import track
from torch import Tensor

from envs import EnvSpec
from marl.config import Option, RewardConfig
from marl.data.replay import sampled
from marl.data.types import EpisodeBatch, Episodes, Transitions, transitions_at
from marl.preferences.dataset.answers import Answer, AnswerLog
from marl.preferences.dataset.format import (
    DatasetEnvironment,
    EpisodeRecord,
    Manifest,
    checked_episode,
    episode_numbers,
    episode_path,
    manifest_path,
    read_episode,
    read_manifest,
    write_episode,
    write_manifest,
)
from marl.preferences.dataset.untrusted import DatasetError, warn_skipped
from marl.utils.files import make_folder
from marl.utils.memory_check import available_bytes

_BY_STEP = ("obs", "state", "actions", "step_facts", "alive", "action_mask")


class EpisodeArchive:
    """An `EpisodeReplay` that never changes: all steps of all episodes, one after another."""

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
        self._facts_by_step = self._rows.pop("step_facts")
        ends = ("final_obs", "final_state", "final_alive")
        self._finals = {n.removeprefix("final_"): stacked(n) for n in ends if n in given}
        self._facts = stacked("facts")
        returns = [record.episode_return for record in records]
        self._returns = torch.tensor(returns, dtype=torch.float32, device=device)
        self._terminated = torch.tensor([record.terminated for record in records], device=device)
        shown = [record.demonstration for record in records]
        self._demonstrations = torch.tensor(shown, device=device)

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
            replay=self,
            numbers=numbers,
            returns=self._returns[places],
            lengths=self.lengths[places],
            terminated=self._terminated[places],
            facts=self._facts[places],
        )

    def demonstrations(self, *, held_out: bool = False) -> Int64[Tensor, "M"]:
        """Return the numbers of the demonstrations on one side of the split, in order."""
        numbers = self.numbers[self._demonstrations]
        return numbers[self.is_held_out(numbers) == held_out]

    def return_moments(self) -> tuple[float, float]:
        """Return mean and standard deviation of all returns; a deviation of zero as 1."""
        returns = self._returns.to(torch.float64)
        return float(returns.mean()), float(returns.std(correction=0)) or 1.0

    def final_states(self, numbers: Int64[Tensor, "M"]) -> Num[Tensor, "M S"]:
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
            raise ValueError(f"the dataset has no episode {int(numbers[unknown][0])}")
        return places

    def _locate(
        self, places: Int64[Tensor, "M"], offsets: Int64[Tensor, "M K"]
    ) -> tuple[Int64[Tensor, "M K"], Bool[Tensor, "M K"]]:
        """Return the rows of steps, and which are the last of their episode."""
        last = (self.lengths[places] - 1).unsqueeze(-1)
        offsets = torch.minimum(offsets, last)
        return self.starts[places].unsqueeze(-1) + offsets, offsets == last

    def batch(
        self,
        numbers: Int64[Tensor, "M"],
        config: RewardConfig,
        generator: torch.Generator,
        **more: Tensor,
    ) -> EpisodeBatch:
        """Return sampled steps of these episodes, as a batch with further fields."""
        episodes = self.episodes(numbers)
        steps, weights, lengths = sampled(
            episodes, config, generator, reads_history=config.recurrence != "none"
        )
        mean, deviation = self.return_moments()
        return EpisodeBatch(
            transitions=steps,
            step_weights=weights,
            lengths=lengths,
            returns=episodes.returns,
            return_mean=mean,
            return_scale=deviation,
            **more,  # type: ignore[arg-type]  # names of tensors only
        )


class PreferenceDataset:
    """Reads a dataset and adds to it. Its manifest is read at once, an episode when asked for."""

    def __init__(self, folder: Path | str, *, skip_damaged: bool = False) -> None:
        """`skip_damaged` leaves damaged episodes and answers out, with a warning."""
        self.folder = Path(folder)
        self.skip_damaged = skip_damaged
        self.manifest = read_manifest(self.folder)
        self.answers = AnswerLog(self.folder / "answers.jsonl", skip_damaged=skip_damaged)
        """Who preferred which episode; `append` and `extend` add to it."""

    @classmethod
    def create(
        cls,
        folder: Path | str,
        spec: EnvSpec,
        *,
        environment: str = "",
        options: Mapping[str, Option] | None = None,
        origin: Mapping[str, Option] | None = None,
    ) -> "PreferenceDataset":
        """Return a new, empty dataset; a folder that holds something is refused.

        `spec` says how the episodes' arrays are to be read, `environment` (by default
        ``spec.name``) and `options` how theirs was made, if it can be made here, and `origin` in
        free words where the data comes from.
        """
        path = Path(folder)
        if path.exists() and not path.is_dir():
            raise DatasetError(f"{path} is a file; choose another folder")
        if path.exists() and any(path.iterdir()):
            what = "a preference dataset" if manifest_path(path).exists() else "something"
            raise DatasetError(f"{path} already holds {what}; choose another folder")
        make_folder(path)
        made = DatasetEnvironment(name=environment or spec.name, options=dict(options or {}))
        manifest = Manifest(environment=made, spec=spec, origin=dict(origin or {}))
        write_manifest(path, manifest)
        return cls(path)

    @property
    def spec(self) -> EnvSpec:
        """Sizes and kinds of the arrays, and what the facts mean."""
        return self.manifest.spec

    def numbers(self) -> list[int]:
        """Return the numbers of the episodes that are there, in order."""
        return episode_numbers(self.folder, skip_damaged=self.skip_damaged)

    def add_episode(self, record: EpisodeRecord, number: int | None = None) -> int:
        """Check and write an episode and return its number: the next free one, or yours."""
        if number is None:
            known = self.numbers()
            number = known[-1] + 1 if known else 0
        path = episode_path(self.folder, number)
        if path.exists():
            raise DatasetError(f"{path}: episode {number} is there already")
        write_episode(self.folder, number, checked_episode(record, self.spec, f"episode {number}"))
        return number

    def episode(self, number: int) -> EpisodeRecord:
        """Return one episode, or raise `DatasetError` if it is missing or damaged."""
        return read_episode(self.folder, number, self.spec, max_bytes=available_bytes())

    def archive(
        self,
        *,
        holdout_every: int = 8,
        device: torch.device | str = "cpu",
        progress: bool = False,
    ) -> EpisodeArchive:
        """Return all episodes in memory, the form in which labellers and reward models read them.

        Of the episodes, every `holdout_every`-th number is never trained on.
        """
        shown: Iterable[int] = self.numbers()
        if progress:
            quiet = not get_console().is_terminal
            shown = track(shown, "reading episodes", transient=True, disable=quiet)
        records: dict[int, EpisodeRecord] = {}
        free = available_bytes()
        for number in shown:
            try:
                records[number] = read_episode(self.folder, number, self.spec, max_bytes=free)
            except DatasetError as error:
                if not self.skip_damaged:
                    raise
                warn_skipped(error)
            else:
                if free is not None:  # the archive copies all of them once
                    free -= 2 * records[number].num_bytes
        if not records:
            raise DatasetError(f"{self.folder} has no episodes; add some, or export a run again")
        return EpisodeArchive(
            list(records),
            list(records.values()),
            holdout_every=holdout_every,
            device=torch.device(device),
        )


class DatasetBatches:
    """The answered pairs of a dataset, split by episode.

    A pair with a held-out episode is never trained on, whichever its other episode is: answers of
    people are few, and this wastes none. In an exported run both are always of one side.
    """

    def __init__(
        self,
        archive: EpisodeArchive,
        answers: Sequence[Answer],
        config: RewardConfig,
        generator: torch.Generator,
    ) -> None:
        self.archive = archive
        self.config = config
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

    def batch(self, *, held_out: bool = False) -> EpisodeBatch | None:
        """Return random answered pairs, M/2 of them at most; None if there is none."""
        first, second, labels = self.pairs(held_out=held_out)
        if len(labels) == 0:
            return None
        order = torch.randperm(len(labels), generator=self.generator, device=labels.device)
        rows = order[: self.config.batch_episodes // 2]
        numbers, places = torch.stack((first[rows], second[rows])).unique(return_inverse=True)
        return self.archive.batch(
            numbers,
            self.config,
            self.generator,
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
