"""The labeller ``people``: pairs wait in the run's folder until someone has answered them.

Axes: B pairs, M episodes.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from envs import EnvSpec
from marl.config import Config
from marl.data.replay import ReplayBuffer
from marl.data.types import Episodes
from marl.preferences.dataset.answers import Answer, AnswerLog, Pair, write_questions
from marl.preferences.dataset.export import record_of
from marl.preferences.dataset.format import Manifest
from marl.preferences.labellers import EpisodePairs, LateAnswers
from marl.preferences.people.camera import Camera, RunDataset, manifest_of

NAN = float("nan")


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """A question to people, and the answer that training was given so far."""

    first: int
    """Number of the episode in the run."""
    second: int
    shown: Pair
    """The two episodes' numbers in the dataset."""
    is_open: bool = True
    label: float = NAN
    """NaN: open, or skipped."""


class PeopleLabeller:
    """Writes pairs into a run's folder for people to answer, and reads their answers as they come.

    Answers come late (`AnswersLate`). One that is withdrawn or changed later is given again.
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
        """Return P(first preferred) where it was answered already, and NaN for new questions.

        A run that was resumed after a kill may ask what has been answered meanwhile.
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
        envs, starts = replay.origins(episodes.numbers)
        films = (
            self.camera.film(env, start) is not None
            for env, start in zip(envs.tolist(), starts.tolist(), strict=True)
        )
        return torch.tensor(list(films), dtype=torch.bool, device=episodes.numbers.device)

    def late_answers(self, replay: ReplayBuffer) -> LateAnswers:
        """Return the answers since the last call to questions about episodes that are still kept.

        Other questions expire: they are closed without an answer.
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
        """Return the questions, the answers given to training, and the films."""
        return {
            "asked": [[a.first, a.second, *a.shown, a.is_open, a.label] for a in self._asked],
            "expired": self._expired,
            "camera": self.camera.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`; the questions that were open then are asked again."""
        self._asked = [
            _Asked(first=first, second=second, shown=(one, other), is_open=is_open, label=label)
            for first, second, one, other, is_open, label in state["asked"]
        ]
        self._expired = state["expired"]
        self.camera.load_state_dict(state["camera"])
        self._write_questions()

    def _added(self, episodes: Episodes) -> list[int]:
        """Add episodes to the dataset and return their numbers there."""
        replay = self._replay(episodes)
        envs, starts = replay.origins(episodes.numbers)
        added = []
        rows = zip(episodes.numbers.tolist(), envs.tolist(), starts.tolist(), strict=True)
        for number, env, start in rows:
            film = self.camera.film(env, start)
            assert film is not None, "asked about an episode that can_judge has refused"
            added.append(self._dataset.add(number, record_of(replay, self._spec, number), film))
        return added

    def _given(self) -> dict[Pair, float | None]:
        """Return the first answer to each pair in either order, None for those only skipped."""
        answers = self._log.answers()
        return first_answers(answer for answer in answers if answer.source.startswith("person:"))

    def _write_questions(self) -> None:
        """Write the open questions, the newest first: old episodes leave the buffer soon."""
        write_questions(self.folder, [a.shown for a in reversed(self._asked) if a.is_open])

    def _replay(self, episodes: Episodes) -> ReplayBuffer:
        replay = episodes.replay
        assert isinstance(replay, ReplayBuffer), "people are asked about a run's own episodes"
        return replay


def make_people(config: Config, spec: EnvSpec, camera: Camera, run: Path) -> PeopleLabeller:
    """Return the labeller of a run, whose dataset is in ``RUN/people``."""
    return PeopleLabeller(run / "people", camera, manifest_of(config, spec, run))


def first_answers(answers: Iterable[Answer]) -> dict[Pair, float | None]:
    """Return P(first preferred) of each pair in both orders, by the first answer that is no skip.

    Later answers to a pair measure people's agreement and are not trained on.
    """
    given: dict[Pair, float | None] = {}
    for answer in answers:
        pair = (answer.first, answer.second)
        if given.get(pair) is None:
            given[pair] = answer.label
            given[pair[::-1]] = None if answer.label is None else 1.0 - answer.label
    return given


def _told(asked: _Asked, given: dict[Pair, float | None]) -> _Asked:
    """Return a question with its answer, if there is one."""
    if asked.shown not in given:
        return replace(asked, is_open=True, label=NAN)
    label = given[asked.shown]
    return replace(asked, is_open=False, label=NAN if label is None else label)


def _same(one: float, other: float) -> bool:
    return one == other or (one != one and other != other)
