"""What people answered at the page, set against the return, other sources and themselves.

Their folder is a preference set: episodes have numbers of its own, and beside the people's answers
there may be those of other sources about the same pairs, such as a run's labeller.
"""

import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from marl.audit.statistics import Share, agreement
from marl.config import ConfigError
from marl.label.plan import self_agreement
from marl.preferences.describe import one_line
from marl.preferences.sets.answers import Answer, AnswerLog, DamagedLogError
from marl.preferences.sets.episodes import episode_path

_PERSON = "person:"


@dataclass(frozen=True, kw_only=True)
class Person:
    """Somebody who answered."""

    name: str
    answers: int
    ties: int
    skipped: int
    with_return: Share
    """Of the pairs whose returns the set holds."""
    with_labellers: Share
    """With sources that are no people, on the same pairs."""
    with_others: Share
    """With other people on the same pairs."""
    with_oneself: Share
    """Later answers to a pair that equal the first one, ties included."""


def read_people(folder: Path) -> tuple[Person, ...]:
    """Return everybody who answered at a folder's page; nobody where it is missing."""
    path = folder / "answers.jsonl"
    if not path.exists():
        return ()
    try:
        answers = AnswerLog(path).answers()
    except DamagedLogError as error:
        raise ConfigError(str(error)) from None
    numbers = {number for answer in answers for number in (answer.first, answer.second)}
    returns = {number: _return_of(folder, number) for number in sorted(numbers)}
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


def _return_of(folder: Path, number: int) -> float:
    """Return an episode's return as the set has it; NaN where the set has none."""
    path = episode_path(folder, number)
    try:
        with np.load(path, allow_pickle=False) as episode:
            return float(episode["return"])
    except FileNotFoundError:
        return math.nan
    except (OSError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise ConfigError(
            f"{path}: not an episode of a preference set ({error}); restore it, or delete it and "
            "its return counts as unknown"
        ) from None
