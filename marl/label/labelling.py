"""One person's labelling of one set: what is shown, what was answered."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from marl.label.plan import SelfAgreement, all_pairs, next_pair, self_agreement
from marl.preferences.sets.answers import Answer, AnswerLog, now
from marl.preferences.sets.frames import filmed_episodes
from marl.preferences.sets.questions import Pair, read_questions

Choice = Literal["first", "second", "tie", "skip"]

LABELS: dict[Choice, float | None] = {"first": 1.0, "second": 0.0, "tie": 0.5, "skip": None}


class StaleError(Exception):
    """What came belongs to a pair that is not the one being asked about any more."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a person is asked."""

    asked_by_run: bool = False
    """Only what training wants to know; otherwise any pair of the set."""
    pairs: int | None = None
    """Answers after which it ends, repetitions and skipped pairs included; None: no limit."""
    repeats: float = 0.0
    """Share of what is shown that was shown before, with its sides swapped."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """A pair that waits for its answer."""

    id: str
    """Changes with every answer and undo, so that none is ever taken twice or for another pair."""
    pair: Pair


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a person is."""

    answered: int
    """Answers, repetitions and skipped pairs included."""
    goal: int | None
    """None: as many as training asks."""
    agreement: SelfAgreement


class Labelling:
    """Asks one person about the pairs of a set; every answer is on the disk when `answer` returns.

    A pair stays the current one until it is answered, whatever training asks meanwhile.
    """

    def __init__(self, folder: Path, name: str, plan: Plan, *, skip_damaged: bool = False) -> None:
        self.folder = folder
        self.source = f"person:{name}"
        self.plan = plan
        self.log = AnswerLog(folder / "answers.jsonl", skip_damaged=skip_damaged)
        self._current: Question | None = None

    def question(self) -> Question | None:
        """Return the pair to show now; None if there is none, or none yet."""
        mine = self._mine()
        if self._current is None and not self._is_enough(mine):
            pair = next_pair(mine, self._open_pairs(), self.plan.repeats)
            if pair is not None:
                self._current = self._asked(pair)
        return self._current

    def answer(self, question_id: str, choice: Choice, seconds: float | None) -> None:
        """Store the answer to the current question; raise `StaleError` if it is for another."""
        question = self.question()
        if question is None or question.id != question_id:
            raise StaleError
        first, second = question.pair
        self.log.append(
            Answer(
                first=first,
                second=second,
                label=LABELS[choice],
                source=self.source,
                at=now(),
                seconds=None if seconds is None else round(seconds, 3),
            )
        )
        self._current = None

    def undo(self, question_id: str | None) -> None:
        """Withdraw the latest answer; its pair is asked again.

        `question_id` is what the page shows meanwhile; `StaleError` if that is not current.
        """
        question = self.question()
        if question_id != (None if question is None else question.id):
            raise StaleError
        withdrawn = self.log.undo(self.source)
        if withdrawn is not None:
            self._current = self._asked((withdrawn.first, withdrawn.second))

    def is_done(self) -> bool:
        """Whether nothing more will be asked; training may always ask more."""
        return self._is_enough(self._mine()) or not self.plan.asked_by_run

    def progress(self) -> Progress:
        """Return how far the person is."""
        mine = self._mine()
        goal = self.plan.pairs
        if not self.plan.asked_by_run:
            episodes = len(filmed_episodes(self.folder))
            most = int(episodes * (episodes - 1) / 2 / (1.0 - self.plan.repeats))
            goal = most if goal is None else min(goal, most)
        return Progress(answered=len(mine), goal=goal, agreement=self_agreement(mine))

    def _asked(self, pair: Pair) -> Question:
        lines = self.log.num_lines(self.source)
        return Question(id=f"{lines}-{pair[0]}-{pair[1]}", pair=pair)

    def _mine(self) -> list[Answer]:
        return [answer for answer in self.log.answers() if answer.source == self.source]

    def _is_enough(self, mine: list[Answer]) -> bool:
        return self.plan.pairs is not None and len(mine) >= self.plan.pairs

    def _open_pairs(self) -> Iterator[Pair]:
        """Return the pairs that may be shown, the most urgent first; some may be answered."""
        filmed = filmed_episodes(self.folder)
        if not self.plan.asked_by_run:
            return all_pairs(filmed, self.source)
        return iter([p for p in read_questions(self.folder) or [] if set(filmed).issuperset(p)])
