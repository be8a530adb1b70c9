"""The answers that a run has kept, and those of people, each set against what else is known.

The run's come from its newest checkpoint, with what the learned reward makes of the episodes. Those
of people come from the preference dataset in its folder ``people``: episodes have numbers of its
own there, and beside the people's answers there may be those of other sources about the same pairs,
such as a run's labeller.

Axes: B pairs.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from marl.policy import restored
from marl.preferences.dataset.answers import Answer, AnswerLog
from marl.preferences.dataset.format import read_return
from marl.preferences.dataset.untrusted import DatasetError, warn_skipped
from marl.preferences.describe import describe
from marl.preferences.people.session import self_agreement
from marl.preferences.queries import disjoint_pairs
from marl.preferences.saved import SavedFeedback
from marl.reports.statistics import Pair, Share, agreement, learned_probability
from marl.rewards.io import restored_reward
from marl.rewards.scoring import score_episodes
from marl.utils.text import one_line

RULES = ("return", "outcome", "facts")
"""Labellers that come with the package and cost nothing to ask again."""
_PERSON = "person:"


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What a checkpoint knows of the answers."""

    steps: int
    """Environment steps of the run at the checkpoint."""
    asked: int
    answered: int
    unanswered: int
    pairs: tuple[Pair, ...]
    """The kept answers or, of a rule that is free, answers to pairs of kept episodes given now."""
    is_asked_now: bool
    forgotten: int
    """Kept answers about episodes that the checkpoint does not hold any more."""


class SavedRun:
    """A run's newest checkpoint: its settings, answers and learned reward."""

    def __init__(self, saved: dict[str, Any], run: Path) -> None:
        """`saved` is the state in a checkpoint of `run`."""
        policy = restored(saved, run)
        self.config = policy.config
        self._spec = policy.spec
        self._steps = policy.steps
        self._feedback = SavedFeedback(
            saved["trainer"]["feedback"], policy.config, policy.spec, run
        )
        self.scores: dict[int, float] = {}
        """Learned score S of each episode whose steps are kept; empty before anything is
        learned."""
        reward = restored_reward(saved, policy.config, policy.spec, run)
        if reward is not None:
            numbers = self._feedback.whole_episodes()
            scores = score_episodes(reward, self._feedback.replay.episodes(numbers))
            self.scores = dict(zip(numbers.tolist(), scores.tolist(), strict=True))

    def kept(self, *, ask_again: bool) -> Kept:
        """Return the answers training uses.

        A labeller that is asked anew for every batch leaves none. A rule of the package is asked
        here about pairs of kept episodes instead, one of the user's own if `ask_again`.
        """
        feedback, preferences = self._feedback, self.config.preferences
        asked, answered = feedback.tally.totals()
        is_free = preferences.queries_per_iteration == 0
        asks = is_free and (ask_again or preferences.labeller in RULES)
        if asks:
            draw = torch.Generator().manual_seed(0)
            numbers = feedback.replay.available()
            order = numbers[torch.randperm(len(numbers), generator=draw)]
            first, second = disjoint_pairs(order, draw)
            labels = feedback.ask(first, second)
        else:
            first, second, labels = feedback.answers.standing()
        known = feedback.is_known(first) & feedback.is_known(second)
        return Kept(
            steps=self._steps,
            asked=asked,
            answered=answered,
            unanswered=asked - answered,
            pairs=tuple(self._pairs(first[known], second[known], labels[known])),
            is_asked_now=asks,
            forgotten=int((~known).sum()),
        )

    def _pairs(
        self, first: Int64[Tensor, "B"], second: Int64[Tensor, "B"], labels: Float[Tensor, "B"]
    ) -> list[Pair]:
        """Return pairs with their returns, what is told of them, and the learned reward's view."""
        replay, facts = self._feedback.replay, self._spec.facts
        one, two = replay.episodes(first), replay.episodes(second)
        rows = zip(
            labels.tolist(),
            zip(one.returns.tolist(), two.returns.tolist(), strict=True),
            zip(first.tolist(), second.tolist(), strict=True),
            zip(describe(one, facts), describe(two, facts), strict=True),
            strict=True,
        )
        pairs = [
            Pair(label=label, outcome=_outcome(label), returns=returns, numbers=numbers, texts=told)
            for label, returns, numbers, told in rows
        ]
        return [replace(pair, learned=learned_probability(pair, self.scores)) for pair in pairs]


def _outcome(label: float) -> str:
    if math.isnan(label):
        return "unanswered"
    return "tie" if label == 0.5 else "answered"


@dataclass(frozen=True, kw_only=True)
class Person:
    """Somebody who answered."""

    name: str
    answers: int
    ties: int
    skipped: int
    with_return: Share
    """Of the pairs whose returns the dataset holds."""
    with_labellers: Share
    """With sources that are no people, on the same pairs."""
    with_others: Share
    """With other people on the same pairs."""
    with_oneself: Share
    """Later answers to a pair that equal the first one, ties included."""


def read_people(folder: Path, *, skip_damaged: bool = False) -> tuple[Person, ...]:
    """Return everybody who answered at a folder's page; nobody where it is missing."""
    path = folder / "answers.jsonl"
    if not path.exists():
        return ()
    answers = AnswerLog(path, skip_damaged=skip_damaged).answers()
    numbers = {number for answer in answers for number in (answer.first, answer.second)}
    returns = {}
    for number in sorted(numbers):
        try:
            returns[number] = read_return(folder, number)
        except DatasetError as error:
            if not skip_damaged:
                raise
            warn_skipped(error)
            returns[number] = math.nan
    by_source: dict[str, list[Answer]] = {}
    for answer in answers:
        by_source.setdefault(answer.source, []).append(answer)
    people = sorted(source for source in by_source if source.startswith(_PERSON))
    return tuple(_person(source, by_source, returns) for source in people)


def _person(
    source: str, by_source: Mapping[str, Sequence[Answer]], returns: Mapping[int, float]
) -> Person:
    mine = by_source[source]
    first, itself = _firsts(mine), self_agreement(mine)
    gaps = [returns[numbers[0]] - returns[numbers[1]] for numbers in first]
    others = {name: _firsts(answers) for name, answers in by_source.items() if name != source}
    people = [given for name, given in others.items() if name.startswith(_PERSON)]
    labellers = [given for name, given in others.items() if not name.startswith(_PERSON)]
    given = [answer.label for answer in mine if answer.label is not None]
    return Person(
        name=one_line(source.removeprefix(_PERSON)),
        answers=len(given),
        ties=given.count(0.5),
        skipped=len(mine) - len(given),
        with_return=agreement(list(first.values()), gaps),
        with_labellers=_with(first, labellers),
        with_others=_with(first, people),
        with_oneself=Share(part=itself.same, whole=itself.repeats),
    )


def _firsts(answers: Sequence[Answer]) -> dict[tuple[int, int], float]:
    """Return the first answer to each pair, as P(the smaller number preferred); skipped ones do
    not count."""
    first: dict[tuple[int, int], float] = {}
    for answer in answers:
        if answer.label is not None:
            numbers = (min(answer.first, answer.second), max(answer.first, answer.second))
            label = answer.label if numbers[0] == answer.first else 1.0 - answer.label
            first.setdefault(numbers, label)
    return first


def _with(
    mine: Mapping[tuple[int, int], float], others: Sequence[Mapping[tuple[int, int], float]]
) -> Share:
    """Return the agreement with others, over all pairs that both have decided."""
    both = [(mine[numbers], other[numbers]) for other in others for numbers in mine.keys() & other]
    return agreement([label for label, _ in both], [label - 0.5 for _, label in both])
