"""The episodes of a run that people are asked about, as a preference set in the run's folder."""

from dataclasses import fields, replace
from pathlib import Path

import numpy as np

from envs import EnvSpec
from marl.config import Config, Option
from marl.preferences.sets.episodes import (
    EpisodeRecord,
    checked_episode,
    episode_path,
    read_episode,
    write_episode,
)
from marl.preferences.sets.frames import write_frames
from marl.preferences.sets.manifest import (
    Manifest,
    SetEnvironment,
    SetError,
    manifest_path,
    write_manifest,
)

AGAIN = 1_000_000
"""Added to the number of an episode where the set has another one of that number already."""


class RunSet:
    """Adds episodes to a set under their numbers in the run.

    A run that was killed and resumed may finish another episode 57 than the one that people were
    asked about before. The set then calls it 1000057; if it is the same, bit for bit, it is found
    again, and so are the answers about it.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self._manifest = manifest

    def add(self, number: int, record: EpisodeRecord, film: bytes) -> int:
        """Return the number of an episode in the set, where it now is if it was not before."""
        record = checked_episode(record, self._manifest.spec, f"episode {number}")
        if not manifest_path(self.folder).exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_manifest(self.folder, self._manifest)
        while episode_path(self.folder, number).exists():
            if self._is(number, record):
                return number
            number += AGAIN
        write_frames(self.folder, number, film)
        write_episode(self.folder, number, record)
        return number

    def _is(self, number: int, record: EpisodeRecord) -> bool:
        """Return whether an episode of the set equals another one."""
        try:
            known = read_episode(self.folder, number, self._spec)
        except SetError:
            return False
        names = [field.name for field in fields(EpisodeRecord)]
        return all(_equal(getattr(known, name), getattr(record, name)) for name in names)

    @property
    def _spec(self) -> EnvSpec:
        return self._manifest.spec


def manifest_of(config: Config, spec: EnvSpec, run: Path) -> Manifest:
    """Return what the set of a run says of itself."""
    environment = SetEnvironment(name=config.env.name, options=dict(config.env.options))
    origin: dict[str, Option] = {"run": str(run), "algorithm": config.algorithm}
    origin |= {"seed": config.seed}
    return Manifest(environment=environment, spec=replace(spec, num_envs=1), origin=origin)


def _equal(one: object, other: object) -> bool:
    """Return whether two arrays, two numbers, or two times nothing are the same bits."""
    if one is None or other is None:
        return one is other
    return np.asarray(one).tobytes() == np.asarray(other).tobytes()
