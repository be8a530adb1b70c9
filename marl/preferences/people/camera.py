"""Episodes with their films, for people to compare: filmed in training or played afterwards.

Axes: E environments.
"""

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from envs import EnvError, EnvSpec, EnvStep, VecEnv
from envs.frames import Frame, HasPictures, frame_of, picture_frame
from envs.sparse import unwrapped
from marl.config import Config
from marl.data.replay import ReplayBuffer
from marl.data.rollout import Collector
from marl.policy import Policy
from marl.preferences.dataset.export import origin_of, record_of
from marl.preferences.dataset.footage import Footage, filmed_episodes, packed, write_frames
from marl.preferences.dataset.format import (
    DatasetEnvironment,
    EpisodeRecord,
    Manifest,
    checked_episode,
    episode_path,
    manifest_path,
    read_episode,
    write_episode,
    write_manifest,
)
from marl.preferences.dataset.untrusted import DatasetError
from marl.utils.files import make_folder, output
from marl.utils.seeding import Seeds

BoolArray = npt.NDArray[np.bool_]

MOST_PICTURES = 60
"""Frames kept of an episode of an environment that draws itself: about 10 KB each."""

AGAIN = 1_000_000
"""Added to the number of an episode where the dataset has another one of that number already."""


class Viewer:
    """Shows the environments of a batch to people: by own pictures, where they draw some."""

    def __init__(self, env: VecEnv) -> None:
        """Pictures are drawn from the environment's next reset on."""
        self._env = env
        inner = unwrapped(env)
        self._drawn = inner if isinstance(inner, HasPictures) else None
        if self._drawn is not None:
            self._drawn.show_pictures()

    @property
    def has_pictures(self) -> bool:
        """Whether the environment may draw itself, in pixels."""
        return self._drawn is not None

    def frame(self, index: int, step: EnvStep, actions: npt.NDArray[Any]) -> Frame:
        """Return what an environment looks like now; the arguments are those of `frame_of`."""
        picture = None if self._drawn is None else self._drawn.picture(index)
        if picture is None:
            return frame_of(self._env, index, step, actions)
        return picture_frame(self._env.spec, picture)


class Camera:
    """Step callback that films the episodes of the first environments of a batch.

    It changes no state but its own, so that a run has the same metrics with and without it. Films
    stay until `forget_before`.
    """

    def __init__(self, env: VecEnv, filmed_envs: int) -> None:
        self.filmed_envs = min(filmed_envs, env.spec.num_envs)
        """Environments 0 to `filmed_envs` - 1 are filmed."""
        self._viewer = Viewer(env)
        self._time = 0
        """Steps taken in every environment."""
        self._open = [(0, self._footage()) for _ in range(self.filmed_envs)]
        """Per environment, the time at which its episode began, and the frames since."""
        self._films: dict[tuple[int, int], bytes] = {}
        """Packed films of finished episodes, by environment and time of the first step."""
        self._before = (self._time, self._open, self._films)
        """The state when the rollout began."""

    def before_rollout(self) -> None:
        """Keep a copy of the state, for `undo_rollout`."""
        running = [(start, footage.copy()) for start, footage in self._open]
        self._before = (self._time, running, self._films.copy())

    def undo_rollout(self) -> None:
        """Go back to the state at `before_rollout`."""
        self._time, self._open, self._films = self._before

    def before_step(self, step: EnvStep, actions: npt.NDArray[Any]) -> None:
        """Add a frame of the state in which the agents are about to act."""
        for index, (_, footage) in enumerate(self._open):
            footage.take(lambda index=index: self._viewer.frame(index, step, actions))  # type: ignore[misc]  # called at once

    def after_step(self, done: BoolArray) -> None:
        """Finish the films of the episodes that ended; `done` is (E,)."""
        self._time += 1
        for index in np.flatnonzero(done[: self.filmed_envs]).tolist():
            start, footage = self._open[index]
            self._films[index, start] = packed(footage.episode())
            self._open[index] = (self._time, self._footage())

    def _footage(self) -> Footage:
        """Return an empty film; pictures are much larger than shapes, so fewer are kept."""
        return Footage(MOST_PICTURES) if self._viewer.has_pictures else Footage()

    def film(self, index: int, start: int) -> bytes | None:
        """Return the packed film of the episode of an environment that began at `start`, if any."""
        return self._films.get((index, start))

    def forget_before(self, time: int) -> None:
        """Drop the films of episodes that began before a time, in steps of every environment."""
        self._films = {at: film for at, film in self._films.items() if at[1] >= time}

    def state_dict(self) -> dict[str, Any]:
        """Return all films, with those of running episodes."""
        return {
            "time": self._time,
            "open": [[start, footage.state_dict()] for start, footage in self._open],
            "films": [
                [index, start, np.frombuffer(film, np.uint8)]
                for (index, start), film in self._films.items()
            ],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()` of a camera with as many environments."""
        self._time = state["time"]
        self._open = []
        for start, saved in state["open"]:
            footage = self._footage()
            footage.load_state_dict(saved)
            self._open.append((start, footage))
        self._films = {(index, start): film.tobytes() for index, start, film in state["films"]}


class RunDataset:
    """Adds a run's episodes to a dataset, under their numbers in the run.

    A run that was killed and resumed may finish another episode 57 than the one that people were
    asked about before. The dataset then calls it 1000057; if it is the same, bit for bit, it is
    found again, and so are the answers about it.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self._manifest = manifest

    def add(self, number: int, record: EpisodeRecord, film: bytes) -> int:
        """Add an episode unless it is there already; return its number in the dataset."""
        record = checked_episode(record, self._manifest.spec, f"episode {number}")
        while episode_path(self.folder, number).exists():
            if self._is(number, record):
                return number
            number += AGAIN
        with output(self.folder, "free some space, or let it be written"):
            make_folder(self.folder)
            if not manifest_path(self.folder).exists():
                write_manifest(self.folder, self._manifest)
            write_frames(self.folder, number, film)
            write_episode(self.folder, number, record)
        return number

    def _is(self, number: int, record: EpisodeRecord) -> bool:
        """Return whether an episode of the dataset equals another one."""
        try:
            known = read_episode(self.folder, number, self._spec)
        except DatasetError:
            return False
        names = [field.name for field in fields(EpisodeRecord)]
        return all(_equal(getattr(known, name), getattr(record, name)) for name in names)

    @property
    def _spec(self) -> EnvSpec:
        return self._manifest.spec


def manifest_of(config: Config, spec: EnvSpec, run: Path) -> Manifest:
    """Return the manifest of a run's dataset."""
    environment = DatasetEnvironment(name=config.env.name, options=dict(config.env.options))
    origin = origin_of(config, run)
    return Manifest(environment=environment, spec=replace(spec, num_envs=1), origin=origin)


def missing_episodes(folder: Path, count: int, *, skip_damaged: bool = False) -> list[int]:
    """Return which of the episodes 0 to `count` - 1 a dataset has no frames of."""
    return sorted(set(range(count)) - set(filmed_episodes(folder, skip_damaged=skip_damaged)))


def film_episodes(policy: Policy, run: Path, folder: Path, numbers: Sequence[int]) -> Iterator[int]:
    """Play episodes by sampled actions into a dataset; yield each number once it is on the disk.

    An episode's number is its seed: the same policy always plays the same episode.
    """
    with policy.open_env(1) as env:
        kept = RunDataset(folder, manifest_of(policy.config, env.spec, run))
        for number in numbers:
            record, film = _filmed(policy, env, number)
            kept.add(number, record, film)
            yield number


def _filmed(policy: Policy, env: VecEnv, number: int) -> tuple[EpisodeRecord, bytes]:
    """Return the episode whose seed is `number`, and its film."""
    spec, steps, cpu = env.spec, env.spec.max_steps, torch.device("cpu")
    seeds, camera = Seeds(number), Camera(env, 1)
    collector = Collector(
        env,
        steps,
        seed=seeds.integer("evaluation environment"),
        generator=seeds.torch("evaluation actions"),
        device=cpu,
        callback=camera,
    )
    rollout = collector.collect(policy.actor)[0]
    replay = ReplayBuffer(
        spec, steps, max_steps=2 * steps, max_episodes=steps, holdout_every=2, device=cpu
    )
    replay.append(rollout)
    film = camera.film(0, 0)
    if film is None:
        raise EnvError(
            f"{spec.name} ended no episode in {steps} steps, its max_steps. `marl check` tests it"
        )
    return record_of(replay, spec, 0), film


def _equal(one: object, other: object) -> bool:
    """Return whether two arrays or numbers are equal bit for bit, or both None."""
    if one is None or other is None:
        return one is other
    return np.asarray(one).tobytes() == np.asarray(other).tobytes()
