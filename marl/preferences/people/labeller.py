"""The labeller ``people``.

Axes: B pairs, M episodes.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from envs import EnvSpec, EnvStep, VecEnv
from envs.frames import frame_of
from marl.config import Config, ConfigError, Option
from marl.data.replay import ReplayBuffer
from marl.data.types import Episodes
from marl.preferences.dataset.export import record_of
from marl.preferences.dataset.footage import Footage, packed, write_frames
from marl.preferences.dataset.format import (
    Answer,
    AnswerLog,
    DamagedLogError,
    DatasetEnvironment,
    DatasetError,
    EpisodeRecord,
    Manifest,
    Pair,
    checked_episode,
    episode_path,
    manifest_path,
    read_episode,
    write_episode,
    write_manifest,
    write_questions,
)
from marl.preferences.labellers import EpisodePairs, LateAnswers

# Films the first copies of an environment while a team is trained in it.


BoolArray = npt.NDArray[np.bool_]


class Camera:
    """Keeps the films of finished episodes until it is told to forget them.

    It only looks, so that a run with it has the same numbers as one without.
    """

    def __init__(self, env: VecEnv, copies: int) -> None:
        self.copies = min(copies, env.spec.num_envs)
        """It films those numbered from 0 to below this."""
        self._env = env
        self._time = 0
        self._open = [(0, Footage()) for _ in range(self.copies)]
        """Per copy, the time at which its episode began, and what was filmed of it."""
        self._films: dict[tuple[int, int], bytes] = {}
        """By copy and time of the first step."""
        self._before = (self._time, self._open, self._films)
        """What there was when the rollout began."""

    def before_rollout(self) -> None:
        """Remember what was filmed so far."""
        running = [(start, footage.copy()) for start, footage in self._open]
        self._before = (self._time, running, self._films.copy())

    def undo_rollout(self) -> None:
        """Forget what was filmed since `before_rollout`."""
        self._time, self._open, self._films = self._before

    def before_step(self, step: EnvStep, actions: npt.NDArray[Any]) -> None:
        """Film what the agents see and are about to do."""
        for copy, (_, footage) in enumerate(self._open):
            footage.take(lambda copy=copy: frame_of(self._env, copy, step, actions))  # type: ignore[misc]  # called at once

    def after_step(self, done: BoolArray) -> None:
        """Finish the films of the copies whose episode has ended; `done` is (E,)."""
        self._time += 1
        for copy in np.flatnonzero(done[: self.copies]).tolist():
            start, footage = self._open[copy]
            self._films[copy, start] = packed(footage.episode())
            self._open[copy] = (self._time, Footage())

    def film(self, copy: int, start: int) -> bytes | None:
        """Return the film of a finished episode, packed as a dataset keeps it; None: not filmed."""
        return self._films.get((copy, start))

    def forget_before(self, time: int) -> None:
        """Drop the films of episodes that began before a time, in steps of every copy."""
        self._films = {at: film for at, film in self._films.items() if at[1] >= time}

    def state_dict(self) -> dict[str, Any]:
        """Return all films, those of running episodes too, so that a resumed run has them."""
        return {
            "time": self._time,
            "open": [[start, footage.state_dict()] for start, footage in self._open],
            "films": [
                [copy, start, np.frombuffer(film, np.uint8)]
                for (copy, start), film in self._films.items()
            ],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()` of a camera on as many copies."""
        self._time = state["time"]
        self._open = []
        for start, saved in state["open"]:
            footage = Footage()
            footage.load_state_dict(saved)
            self._open.append((start, footage))
        self._films = {(copy, start): film.tobytes() for copy, start, film in state["films"]}


# The episodes of a run that people are asked about, as a preference dataset in the run's folder.


AGAIN = 1_000_000
"""Added to the number of an episode where the dataset has another one of that number already."""


class RunDataset:
    """Adds episodes to a dataset under their numbers in the run.

    A run that was killed and resumed may finish another episode 57 than the one that people were
    asked about before. The dataset then calls it 1000057; if it is the same, bit for bit, it is
    found again, and so are the answers about it.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self._manifest = manifest

    def add(self, number: int, record: EpisodeRecord, film: bytes) -> int:
        """Return the number of an episode in the dataset, where it now is if it was not before."""
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
    """Return what the dataset of a run says of itself."""
    environment = DatasetEnvironment(name=config.env.name, options=dict(config.env.options))
    origin: dict[str, Option] = {"run": str(run), "algorithm": config.algorithm}
    origin |= {"seed": config.seed}
    return Manifest(environment=environment, spec=replace(spec, num_envs=1), origin=origin)


def _equal(one: object, other: object) -> bool:
    """Return whether two arrays, two numbers, or two times nothing are the same bits."""
    if one is None or other is None:
        return one is other
    return np.asarray(one).tobytes() == np.asarray(other).tobytes()


NAN = float("nan")


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """A pair that people were asked about, and what training has been told of it so far."""

    first: int
    """Number of the episode in the run."""
    second: int
    shown: Pair
    """The two episodes' numbers in the dataset."""
    is_open: bool = True
    label: float = NAN
    """NaN: open, or skipped."""


class PeopleLabeller:
    """Puts pairs into a run's folder for people to answer, and reads their answers as they come.

    An answer that is withdrawn, or changed, after training has been told of it is told again.
    """

    def __init__(self, folder: Path, camera: Camera, manifest: Manifest) -> None:
        self.folder = folder
        self.camera = camera
        self._dataset = RunDataset(folder, manifest)
        self._spec = manifest.spec
        self._log = AnswerLog(folder / "answers.jsonl")
        self._asked: list[_Asked] = []
        self._expired = 0

    def __call__(self, pairs: EpisodePairs) -> Float[Tensor, "B"]:
        """Return the answers that are there already, and NaN for what is open from now on.

        There are answers already where a run was killed and asks again.
        """
        given = self._given()
        known = {frozenset((asked.first, asked.second)) for asked in self._asked}
        sides = zip(self._added(pairs.first), self._added(pairs.second), strict=True)
        numbers = zip(pairs.first.numbers.tolist(), pairs.second.numbers.tolist(), strict=True)
        labels = []
        for (first, second), shown in zip(numbers, sides, strict=True):
            if frozenset((first, second)) in known:
                labels.append(NAN)  # open still, or answered: training was told already
                continue
            asked = _told(_Asked(first=first, second=second, shown=shown), given)
            labels.append(asked.label)
            self._asked.append(asked)
        self._write_questions()
        return torch.tensor(labels, dtype=torch.float32)

    def can_judge(self, episodes: Episodes) -> Bool[Tensor, "M"]:
        """Return which episodes were filmed from their first step."""
        replay = self._replay(episodes)
        copies, starts = replay.origins(episodes.numbers)
        films = (
            self.camera.film(copy, start) is not None
            for copy, start in zip(copies.tolist(), starts.tolist(), strict=True)
        )
        return torch.tensor(list(films), dtype=torch.bool, device=episodes.numbers.device)

    def late_answers(self, replay: ReplayBuffer) -> LateAnswers:
        """Return what people have said since the last call about episodes that are still whole.

        Questions about others are closed without an answer.
        """
        self.camera.forget_before(replay.time - replay.ring_steps)
        given = self._given()
        kept: list[_Asked] = []
        changed: list[_Asked] = []
        for asked in self._asked:
            pair = torch.tensor([asked.first, asked.second], device=replay.device)
            if not bool(replay.holds(pair).all()):
                if asked.is_open:
                    self._expired += 1
                    changed.append(asked)
                continue
            now = _told(asked, given)
            kept.append(now)
            if now.is_open != asked.is_open or not _same(now.label, asked.label):
                changed.append(now)
        if len(kept) < len(self._asked) or changed:
            self._asked = kept
            self._write_questions()
        return LateAnswers(
            first=torch.tensor([a.first for a in changed], dtype=torch.int64, device=replay.device),
            second=torch.tensor(
                [a.second for a in changed], dtype=torch.int64, device=replay.device
            ),
            labels=torch.tensor([a.label for a in changed], device=replay.device),
        )

    def num_open(self) -> int:
        """Return how many questions still have no answer on the disk."""
        given = self._given()
        return sum(_told(asked, given).is_open for asked in self._asked)

    def metrics(self) -> dict[str, float]:
        """Return how many questions are open, and how many were never answered in time."""
        is_open = sum(asked.is_open for asked in self._asked)
        return {"open": float(is_open), "expired": float(self._expired)}

    def state_dict(self) -> dict[str, Any]:
        """Return what is being asked, what training was told, and the films."""
        return {
            "asked": [[a.first, a.second, *a.shown, a.is_open, a.label] for a in self._asked],
            "expired": self._expired,
            "camera": self.camera.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`; the page is shown what was open then."""
        self._asked = [
            _Asked(first=first, second=second, shown=(one, other), is_open=is_open, label=label)
            for first, second, one, other, is_open, label in state["asked"]
        ]
        self._expired = state["expired"]
        self.camera.load_state_dict(state["camera"])
        self._write_questions()

    def _added(self, episodes: Episodes) -> list[int]:
        """Return the episodes' numbers in the dataset, to which they are added."""
        replay = self._replay(episodes)
        copies, starts = replay.origins(episodes.numbers)
        added = []
        rows = zip(episodes.numbers.tolist(), copies.tolist(), starts.tolist(), strict=True)
        for number, copy, start in rows:
            film = self.camera.film(copy, start)
            assert film is not None, "asked about an episode that can_judge has refused"
            added.append(self._dataset.add(number, record_of(replay, self._spec, number), film))
        return added

    def _given(self) -> dict[Pair, float | None]:
        """Return the first answer to each pair in either order, None for those only skipped."""
        try:
            answers = self._log.answers()
        except DamagedLogError as error:
            raise ConfigError(str(error)) from error
        return first_answers(answer for answer in answers if answer.source.startswith("person:"))

    def _write_questions(self) -> None:
        """Tell the page what is open, the newest first: old episodes leave the buffer soon."""
        write_questions(self.folder, [a.shown for a in reversed(self._asked) if a.is_open])

    def _replay(self, episodes: Episodes) -> ReplayBuffer:
        replay = episodes.replay
        assert isinstance(replay, ReplayBuffer), "people are asked about a run's own episodes"
        return replay


def make_people(config: Config, spec: EnvSpec, camera: Camera, run: Path) -> PeopleLabeller:
    """Return the labeller of a run, whose dataset is in ``RUN/people``."""
    return PeopleLabeller(run / "people", camera, manifest_of(config, spec, run))


def first_answers(answers: Iterable[Answer]) -> dict[Pair, float | None]:
    """Return P(first preferred) of each pair by both its orders: the first that is no skip.

    Later answers to a pair tell how sure people are, and teach nothing twice.
    """
    given: dict[Pair, float | None] = {}
    for answer in answers:
        pair = (answer.first, answer.second)
        if given.get(pair) is None:
            given[pair] = answer.label
            given[pair[::-1]] = None if answer.label is None else 1.0 - answer.label
    return given


def _told(asked: _Asked, given: dict[Pair, float | None]) -> _Asked:
    """Return a question with what is known of it now."""
    if asked.shown not in given:
        return replace(asked, is_open=True, label=NAN)
    label = given[asked.shown]
    return replace(asked, is_open=False, label=NAN if label is None else label)


def _same(one: float, other: float) -> bool:
    return one == other or (one != one and other != other)
