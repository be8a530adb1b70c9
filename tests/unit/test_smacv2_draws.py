"""Draws of an episode depend on its seed alone, not on the episodes before."""

import random
from typing import Any

import numpy as np

from envs.smacv2 import EpisodeDraws


class Deck:
    """Shuffles the list it keeps, as upstream's ``fixed`` distribution does."""

    def __init__(self) -> None:
        self.items = list(range(20))
        self.rng = np.random.default_rng()

    def generate(self) -> list[Any]:
        random.shuffle(self.items)
        return [*self.items, self.rng.random()]


class Pair:
    """Draws from two distributions inside it."""

    def __init__(self) -> None:
        self.first, self.second, self.rng = Deck(), Deck(), np.random.default_rng()

    def generate(self) -> list[Any]:
        return [*self.first.generate(), *self.second.generate(), self.rng.random()]


def draw(seed: int, distributions: dict[str, Any]) -> list[Any]:
    draws = EpisodeDraws(seed)
    with draws.used():
        return [d.generate() for d in draws.seeded(distributions).values()]


def test_a_draw_depends_on_its_seed_alone() -> None:
    ours, others = {"a": Pair(), "b": Deck()}, {"a": Pair(), "b": Deck()}
    first = draw(1, ours)
    assert draw(2, ours) != first
    assert draw(1, ours) == first
    assert draw(1, others) == first


def test_distributions_inside_draw_on() -> None:
    # One generator goes round, so no two numbers of an episode are the same one.
    ((*first, one, two),) = draw(1, {"a": Pair()})
    numbers = [first[20], one, two]
    assert len(set(numbers)) == 3


def test_global_draws_go_on_where_they_were() -> None:
    draws = EpisodeDraws(4)
    random.seed(0)
    expected = random.Random(0).random()
    numbers = []
    for _ in range(2):
        with draws.used():
            numbers.append(random.random())
    generator = random.Random(4)
    assert numbers == [generator.random(), generator.random()]
    assert random.random() == expected
