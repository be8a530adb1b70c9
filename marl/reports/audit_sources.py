"""Where the answers that an audit reads come from: a cache, a checkpoint, and people.

What a language model answered is read from its answer cache; shares are over the pairs of one
prompt and one model. What a run keeps comes from its newest checkpoint, with what the learned
reward makes of the episodes. What people answered comes from the preference dataset in the run's
folder ``people``: its episodes have numbers of their own, and beside the people's answers there may
be those of other sources about the same pairs, such as a run's labeller.

Axes: B pairs.
"""

import math
import sqlite3
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from math import isnan
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from marl.policy import restored
from marl.preferences.buffer import SavedFeedback
from marl.preferences.dataset.answers import Answer, AnswerLog
from marl.preferences.dataset.format import read_return
from marl.preferences.dataset.untrusted import DatasetError, warn_skipped
from marl.preferences.describe import describe
from marl.preferences.llm.cache import CacheError, snapshot
from marl.preferences.llm.prompts import cleaned
from marl.preferences.people.session import self_agreement
from marl.preferences.queries import disjoint_pairs
from marl.reports.statistics import (
    Bin,
    Pair,
    Share,
    agreement,
    confident_agreement,
    learned_probability,
    mean,
    reliability,
)
from marl.rewards.io import restored_reward
from marl.rewards.scoring import score_episodes
from marl.utils.checkpoint import num_processes
from marl.utils.launch import share_of
from marl.utils.text import one_line

RULES = ("return", "outcome", "facts")
"""Labellers that come with the package and cost nothing to ask again."""
_PERSON = "person:"


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What the attempts at the questions of one prompt to one model used."""

    prompt: str
    model: str
    answered: int
    unanswered: Counter[str] = field(default_factory=Counter)
    """Attempts without an answer, by what was in the way."""
    prompt_tokens: int
    reply_tokens: int
    money: float
    seconds: tuple[float, ...]
    """Of each answered attempt."""

    @property
    def calls(self) -> int:
        """Attempts."""
        return self.answered + self.unanswered.total()


@dataclass(frozen=True, kw_only=True)
class CachedAnswers:
    """What an answer cache knows of one run."""

    pairs: tuple[Pair, ...]
    costs: tuple[Cost, ...]


@dataclass(frozen=True, kw_only=True)
class JudgeReport:
    """What one prompt with one model answered, and how well."""

    prompt: str
    model: str
    form: str
    first_choice: str
    pairs: int
    answered: int
    ties: int
    unanswered: Counter[str]
    """Pairs without an answer, by reason."""
    agreement: Share
    """With the return."""
    confident: Share
    """The same on the surer half."""
    flips: Share
    """Pairs of which the two orders preferred different episodes, of those asked in both."""
    firsts: Share
    """Hard answers that are the first choice, over different questions."""
    mass: float
    """Mean probability of the two choices together."""
    bins: tuple[Bin, ...]
    cost: Cost | None
    """None where the cache has no attempt of this prompt and model."""


def read_asked(path: Path, run: str) -> CachedAnswers:
    """Return what was asked for a run.

    The file is only read. Raises `CacheError` if it cannot be.
    """
    with closing(snapshot(path)) as database:
        database.row_factory = sqlite3.Row
        pairs = database.execute("SELECT * FROM labels WHERE run = ? ORDER BY at, id", (run,))
        calls = database.execute("SELECT * FROM calls WHERE run = ? ORDER BY id", (run,))
        try:
            return CachedAnswers(
                pairs=tuple(map(_pair, pairs)),
                costs=_costs(list(calls)),
            )
        except (AttributeError, TypeError, ValueError) as error:
            raise CacheError(
                f"{path}: holds labels or attempts that this program does not write ({error}); "
                "do not trust where it came from"
            ) from None


def _pair(row: sqlite3.Row) -> Pair:
    numbers = (row["first_number"], row["second_number"])
    return Pair(
        label=_number(row["label"]),
        outcome=one_line(row["outcome"]),
        returns=(_number(row["first_return"]), _number(row["second_return"])),
        numbers=None if None in numbers else numbers,
        texts=(cleaned(row["first"]), cleaned(row["second"])),
        prompt=one_line(row["prompt"]),
        model=one_line(row["model"]),
        form=row["form"],
        first_choice=one_line(row["first_choice"]),
        odds=(row["first_odds"], row["second_odds"]),
        masses=(row["first_mass"], row["second_mass"]),
    )


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _costs(rows: Sequence[sqlite3.Row]) -> tuple[Cost, ...]:
    """Return the costs by prompt and model."""
    groups: dict[tuple[str, str], list[sqlite3.Row]] = {}
    for row in rows:
        groups.setdefault((row["prompt"], row["model"]), []).append(row)
    return tuple(_cost(*named, group) for named, group in sorted(groups.items()))


def _cost(prompt: str, model: str, rows: Sequence[sqlite3.Row]) -> Cost:
    answered = [row for row in rows if row["outcome"] == "answered"]
    others = (row["outcome"] or "under way" for row in rows if row["outcome"] != "answered")
    return Cost(
        prompt=one_line(prompt),
        model=one_line(model),
        answered=len(answered),
        unanswered=Counter(map(one_line, others)),
        prompt_tokens=sum(row["prompt_tokens"] or 0 for row in rows),
        reply_tokens=sum(row["reply_tokens"] or 0 for row in rows),
        money=sum(row["cost"] or 0.0 for row in rows),
        seconds=tuple(row["ended"] - row["started"] for row in answered),
    )


def judges(asked: CachedAnswers) -> list[JudgeReport]:
    """Return each prompt and model that a run has used, in order of their names."""
    groups: dict[tuple[str, str], list[Pair]] = {}
    for pair in asked.pairs:
        groups.setdefault((pair.prompt, pair.model), []).append(pair)
    costs = {(cost.prompt, cost.model): cost for cost in asked.costs}
    names = sorted(groups.keys() | costs.keys())
    return [_judge(*name, groups.get(name, []), costs.get(name)) for name in names]


def _judge(prompt: str, model: str, pairs: Sequence[Pair], cost: Cost | None) -> JudgeReport:
    labels, gaps = [pair.label for pair in pairs], [pair.gap for pair in pairs]
    questions = _questions(pairs)
    forms = {pair.form for pair in pairs if pair.form}
    return JudgeReport(
        prompt=prompt,
        model=model,
        form=max(forms, default=""),
        first_choice=max((pair.first_choice for pair in pairs), default=""),
        pairs=len(pairs),
        answered=sum(not isnan(label) for label in labels),
        ties=labels.count(0.5),
        unanswered=Counter(pair.outcome for pair in pairs if isnan(pair.label)),
        agreement=agreement(labels, gaps),
        confident=confident_agreement(labels, gaps),
        flips=_flips(pairs),
        firsts=Share(part=sum(odds > 0.0 for odds, _ in questions), whole=len(questions)),
        mass=mean([mass for _, mass in questions]),
        bins=tuple(reliability(labels, gaps)),
        cost=cost,
    )


def _flips(pairs: Iterable[Pair]) -> Share:
    """Return how many pairs got the same letter in both orders, of those asked in both."""
    flips = []
    for pair in pairs:
        one, two = pair.odds
        if pair.form == "pairwise" and one is not None and two is not None:
            flips.append(one * two > 0.0)
    return Share(part=sum(flips), whole=len(flips))


def _questions(pairs: Iterable[Pair]) -> list[tuple[float, float]]:
    """Return log-odds and mass of each different question that was answered."""
    found: dict[tuple[str, ...], tuple[float, float]] = {}
    for pair in pairs:
        both = pair.form == "pairwise"
        asked = (pair.texts, pair.texts[::-1]) if both else ((pair.texts[0],), (pair.texts[1],))
        for question, odds, mass in zip(asked, pair.odds, pair.masses, strict=True):
            if odds is not None and mass is not None:
                found[question] = (odds, mass)
    return list(found.values())


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
        share = share_of(policy.config, num_processes(saved))  # the file is that of process 0
        self._feedback = SavedFeedback(saved["trainer"]["feedback"], share, policy.spec, run)
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
    """A person, and how the answers agree with others."""

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
    """Return all people who answered on a folder's page; none where there is no log."""
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
