"""A preference set: a folder of episodes, and of answers about pairs of them."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from rich import get_console
from rich.progress import track

from envs import EnvSpec
from marl.config import Option
from marl.preferences.sets.answers import AnswerLog
from marl.preferences.sets.archive import EpisodeArchive
from marl.preferences.sets.episodes import (
    EpisodeRecord,
    checked_episode,
    episode_numbers,
    episode_path,
    read_episode,
    write_episode,
)
from marl.preferences.sets.manifest import (
    Manifest,
    SetEnvironment,
    SetError,
    manifest_path,
    read_manifest,
    write_manifest,
)


class PreferenceSet:
    """Reads a set, and adds to it. What it says of itself is read at once, episodes when asked."""

    def __init__(self, folder: Path | str, *, skip_damaged: bool = False) -> None:
        """`skip_damaged` leaves damaged answers out, with a warning, instead of raising."""
        self.folder = Path(folder)
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
    ) -> "PreferenceSet":
        """Return a new, empty set; a folder that holds something is refused.

        `spec` says how the episodes' arrays are to be read, `environment` (by default
        ``spec.name``) and `options` how theirs was made, if it can be made here, and `origin` in
        free words where the data comes from.
        """
        path = Path(folder)
        if path.exists() and not path.is_dir():
            raise SetError(f"{path} is a file; choose another folder")
        if path.exists() and any(path.iterdir()):
            what = "a preference set" if manifest_path(path).exists() else "something"
            raise SetError(f"{path} already holds {what}; choose another folder")
        path.mkdir(parents=True, exist_ok=True)
        made = SetEnvironment(name=environment or spec.name, options=dict(options or {}))
        manifest = Manifest(environment=made, spec=spec, origin=dict(origin or {}))
        write_manifest(path, manifest)
        return cls(path)

    @property
    def spec(self) -> EnvSpec:
        """Sizes and kinds of the arrays, and what the facts mean."""
        return self.manifest.spec

    def numbers(self) -> list[int]:
        """Return the numbers of the episodes that are there, in order."""
        return episode_numbers(self.folder)

    def add_episode(self, record: EpisodeRecord, number: int | None = None) -> int:
        """Check and write an episode and return its number: the next free one, or yours."""
        if number is None:
            known = self.numbers()
            number = known[-1] + 1 if known else 0
        path = episode_path(self.folder, number)
        if number < 0 or path.exists():
            reason = "is there already" if number >= 0 else "cannot be: numbers begin at 0"
            raise SetError(f"{path}: episode {number} {reason}")
        write_episode(self.folder, number, checked_episode(record, self.spec, f"episode {number}"))
        return number

    def episode(self, number: int) -> EpisodeRecord:
        """Return one episode, or raise `SetError` if it is missing or damaged."""
        return read_episode(self.folder, number, self.spec)

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
        numbers = self.numbers()
        if not numbers:
            raise SetError(f"{self.folder} has no episodes; add some, or export a run again")
        shown: Iterable[int] = numbers
        if progress:
            quiet = not get_console().is_terminal
            shown = track(numbers, "reading episodes", transient=True, disable=quiet)
        records = [self.episode(number) for number in shown]
        return EpisodeArchive(
            numbers, records, holdout_every=holdout_every, device=torch.device(device)
        )
