"""How often a run's learned reward agrees with a person, for the page."""

from collections.abc import Sequence
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
    """Compares a person's answers with the reward in a run's newest checkpoint.

    Training may have learned from these answers: it tells whether they are understood, not how the
    reward does on others.
    """

    def __init__(self, run: Path, folder: Path) -> None:
        """`folder` is the run's dataset."""
        self._run, self._folder = run, folder
        self._read: Path | None = None
        """The checkpoint that the scores are of."""
        self._scores: dict[int, float] = {}
        """Of episodes, by number; empty: nothing was learned yet."""

    def __call__(self, answers: Sequence[Answer]) -> tuple[int, int] | None:
        """Return how many of the decided answers the reward agrees with, and how many there are.

        None: the run has learned no reward, or none yet, or its checkpoint cannot be read here.
        """
        decided = [a for a in answers if a.label not in (None, 0.5)]
        try:
            self._score({number for a in decided for number in (a.first, a.second)})
        except UserError:
            return None
        if not decided or not self._scores:
            return None
        gaps = [self._scores[a.first] - self._scores[a.second] for a in decided]
        same = sum((gap > 0) == (a.label == 1.0) for gap, a in zip(gaps, decided, strict=True))
        return same, len(decided)

    def _score(self, numbers: set[int]) -> None:
        """Score episodes by the newest checkpoint's reward, each once."""
        checkpoints = list_checkpoints(self._run / "checkpoints")
        newest = checkpoints[-1] if checkpoints else None
        if newest != self._read:
            self._read, self._scores = newest, {}
        unknown = sorted(numbers - set(self._scores))
        if newest is None or not unknown:
            return
        policy, reward = load_team(self._run)
        if reward is None:
            return
        records = [read_episode(self._folder, number, policy.spec) for number in unknown]
        archive = EpisodeArchive(unknown, records, holdout_every=2, device=torch.device("cpu"))
        with torch.no_grad():
            scores = score_episodes(reward, archive.episodes(torch.tensor(unknown)))
        self._scores |= dict(zip(unknown, scores.tolist(), strict=True))
