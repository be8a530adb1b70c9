"""How many questions, and when."""

from typing import Any

import pytest

from marl.config import PreferenceConfig
from marl.preferences.queries import Budget


def granted(iterations: int, **settings: Any) -> list[tuple[int, int]]:
    """Return what each iteration is granted, all of which is asked."""
    budget, grants = Budget(PreferenceConfig(**settings)), []
    for index in range(iterations):
        train, held_out = budget.grant(index / iterations)
        budget.asked += train + held_out
        grants.append((train, held_out))
    return grants


def test_a_constant_rate_is_shared_with_the_held_out_side() -> None:
    assert granted(3, queries_per_iteration=8, holdout_every=4) == [(6, 2)] * 3


def test_a_small_rate_comes_to_its_share_in_the_long_run() -> None:
    # 80 of 2 each: 160, an eighth of them held out.
    grants = granted(80, queries_per_iteration=2, holdout_every=8)
    assert tuple(map(sum, zip(*grants, strict=True))) == (140, 20)


def test_a_hyperbolic_rate_falls_to_an_eleventh() -> None:
    # 44 / (1 + 10 t) at t = 0, 1/4, 1/2, 3/4: 44, 12.57, 7.33, 5.18; half of each is held out:
    # cumulated 22, 28.29, 31.95, 34.54 per side, rounded 22, 28, 32, 35.
    grants = granted(4, queries_per_iteration=44, schedule="hyperbolic", holdout_every=2)
    assert grants == [(22, 22), (6, 6), (4, 4), (3, 3)]


def test_the_budget_is_never_passed() -> None:
    grants = granted(5, queries_per_iteration=8, holdout_every=4, max_labels=20)
    assert grants == [(6, 2), (6, 2), (2, 2), (0, 0), (0, 0)]


@pytest.mark.parametrize("stop", [1, 7])
def test_counts_continue_exactly(stop: int) -> None:
    config = PreferenceConfig(queries_per_iteration=3, schedule="hyperbolic", max_labels=30)
    budget, other = Budget(config), Budget(config)
    for index in range(stop):
        budget.asked += sum(budget.grant(index / 20))
    other.load_state_dict(budget.state_dict())
    assert [other.grant(i / 20) for i in range(20)] == [budget.grant(i / 20) for i in range(20)]
