"""Which pair a person is shown next: a function of what they have answered so far.

Nothing is remembered beside the answers, so that stopping, going on and undoing all lead to the
same pairs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

from marl.preferences.sets.answers import Answer
from marl.preferences.sets.questions import Pair

APART = 5
"""Answers between a pair and its repetition, so that it is judged anew, not remembered."""


@dataclass(frozen=True, kw_only=True)
class SelfAgreement:
    """What became of the pairs that were shown twice."""

    same: int
    repeats: int


def next_pair(answers: Sequence[Answer], open_pairs: Iterator[Pair], repeats: float) -> Pair | None:
    """Return what to show after one person's `answers`; None if nothing is left.

    `open_pairs` come in order of urgency and may contain answered ones. A share `repeats` of what
    is shown are earlier pairs with their sides swapped.
    """
    if int((len(answers) + 1) * repeats) > num_repeats(answers):
        once = _shown_once(answers)
        if once:
            draw = Random(len(answers)).randrange(len(once))
            return once[draw].second, once[draw].first
    known = {_key(answer) for answer in answers}
    for first, second in open_pairs:
        if frozenset((first, second)) not in known:
            return first, second
    return None


def all_pairs(episodes: Sequence[int], name: str) -> Iterator[Pair]:
    """Yield every pair of some episodes once, in an order and on sides that belong to `name`.

    It is a round-robin tournament: in each round every episode meets another one.
    """
    random = Random(name)
    ring: list[int | None] = [*random.sample(list(episodes), len(episodes))]
    if len(ring) % 2:
        ring.append(None)
    half = len(ring) // 2
    for _ in range(len(ring) - 1):
        for one, other in zip(ring[:half], reversed(ring[half:]), strict=True):
            if one is not None and other is not None:
                yield (one, other) if random.random() < 0.5 else (other, one)
        ring = [ring[0], ring[-1], *ring[1:-1]]


def num_repeats(answers: Sequence[Answer]) -> int:
    """Return how many of the answers were given to pairs that had been answered before."""
    return len(answers) - len({_key(answer) for answer in answers})


def self_agreement(answers: Sequence[Answer]) -> SelfAgreement:
    """Return how often a pair's second answer, sides taken into account, equals its first.

    Pairs that were skipped either time do not count.
    """
    before: dict[frozenset[int], float] = {}
    same = repeats = 0
    for answer in answers:
        if answer.label is None:
            continue
        forward = answer.label if answer.first < answer.second else 1.0 - answer.label
        if _key(answer) in before:
            repeats += 1
            same += before[_key(answer)] == forward
        else:
            before[_key(answer)] = forward
    return SelfAgreement(same=same, repeats=repeats)


def _shown_once(answers: Sequence[Answer]) -> list[Answer]:
    """Return the answered pairs that are old enough to be repeated and were not yet."""
    counts: dict[frozenset[int], int] = {}
    for answer in answers:
        counts[_key(answer)] = counts.get(_key(answer), 0) + 1
    old = answers[: max(0, len(answers) - APART)]
    return [a for a in old if a.label is not None and counts[_key(a)] == 1]


def _key(answer: Answer) -> frozenset[int]:
    return frozenset((answer.first, answer.second))
