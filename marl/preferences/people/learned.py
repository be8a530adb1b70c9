"""How often a run's learned reward agrees with a person, for the page."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch

from marl import UserError
from marl.preferences.dataset.answers import Answer
from marl.preferences.dataset.dataset import EpisodeArchive
from marl.preferences.dataset.format import read_episode
from marl.reports.video import load_team
from marl.rewards.scoring import score_episodes
from marl.utils.checkpoint import list_checkpoints


class LearnedAgreement:
    """Compares a person's answers with a reward that has not learned from them.

    A run that asks people learns from their answers. Each is therefore judged once, by the reward
    of a checkpoint that was written before it was given (prequential: first test, then train); one
    that came before the newest checkpoint, unseen by this object, is not judged at all. No other
    run learns from the answers of its page: there the newest checkpoint judges all of them.
    """

    def __init__(self, run: Path, folder: Path, *, learns_from_them: bool) -> None:
        """`folder` is the run's dataset; `learns_from_them` says whether the run asks people."""
        self._run, self._folder = run, folder
        self._learns_from_them = learns_from_them
        self._read: Path | None = None
        """The checkpoint that the scores are of."""
        self._scores: dict[int, float] = {}
        """Of episodes, by number."""
        self._agrees: dict[Answer, bool] = {}
        """Answers that were judged, and whether the reward preferred the same episode."""
        self._told: set[frozenset[int]] = set()
        """Pairs from answers to which, also withdrawn ones, the checkpoint may have learned."""

    def __call__(self, answers: Sequence[Answer]) -> tuple[int, int] | None:
        """Return with how many of the judged answers the reward agrees, and how many there are.

        Ties and skips are not judged. None: no answer could be judged yet, as nothing was learned
        or the checkpoint cannot be read here.
        """
        decided = [answer for answer in answers if answer.label not in (None, 0.5)]
        try:
            self._judge(decided)
        except UserError:
            return None
        agrees = [self._agrees[answer] for answer in decided if answer in self._agrees]
        return (sum(agrees), len(agrees)) if agrees else None

    def _judge(self, answers: Sequence[Answer]) -> None:
        """Compare the answers that the newest checkpoint may judge and none has judged before."""
        newest = self._newest()
        if newest is None:
            return
        if newest != self._read:
            self._read, self._scores = newest, {}
            if self._learns_from_them:
                self._told.update(map(_pair, self._agrees))
            else:
                self._agrees = {}
        open_answers = [a for a in answers if a not in self._agrees and _pair(a) not in self._told]
        if self._learns_from_them:
            written = datetime.fromtimestamp(newest.stat().st_mtime, UTC)
            open_answers = [answer for answer in open_answers if _is_after(answer, written)]
        self._score({number for a in open_answers for number in (a.first, a.second)})
        for answer in open_answers:
            if answer.first in self._scores:
                gap = self._scores[answer.first] - self._scores[answer.second]
                self._agrees[answer] = (gap > 0) == (answer.label == 1.0)

    def _score(self, numbers: set[int]) -> None:
        """Score episodes by the newest checkpoint's reward, each once."""
        unknown = sorted(numbers - set(self._scores))
        if not unknown:
            return
        policy, reward = load_team(self._run)
        if reward is None or self._newest() != self._read:  # a later one may know the answers
            return
        records = [read_episode(self._folder, number, policy.spec) for number in unknown]
        archive = EpisodeArchive(unknown, records, holdout_every=2, device=torch.device("cpu"))
        with torch.no_grad():
            scores = score_episodes(reward, archive.episodes(torch.tensor(unknown)))
        self._scores |= dict(zip(unknown, scores.tolist(), strict=True))

    def _newest(self) -> Path | None:
        checkpoints = list_checkpoints(self._run / "checkpoints")
        return checkpoints[0] if checkpoints else None


def _pair(answer: Answer) -> frozenset[int]:
    return frozenset((answer.first, answer.second))


def _is_after(answer: Answer, time: datetime) -> bool:
    """Return whether an answer says that it was given after a time."""
    try:
        given = datetime.fromisoformat(answer.at)
    except ValueError:  # some other file's idea of a time
        return False
    return given.tzinfo is not None and given > time
