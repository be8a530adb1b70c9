"""Which episodes are compared with which.

Axes: M episodes, B pairs.
"""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from marl.preferences.queries import (
    all_pairs,
    disagreement,
    disjoint_pairs,
    draw_episodes,
    draw_pairs,
    draw_stratified,
    entropy,
    in_bootstrap,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(
    available=st.sets(st.integers(0, 50), min_size=1),
    latest=st.integers(0, 50),
    count=st.integers(1, 40),
    share=st.floats(0.0, 1.0),
    seed=st.integers(0, 2**31 - 1),
)
def test_drawn_episodes_differ_and_keep_the_share(
    available: set[int], latest: int, count: int, share: float, seed: int
) -> None:
    drawn = draw_episodes(
        torch.tensor(sorted(available)), latest, count, share, generator(seed)
    ).tolist()
    assert len(drawn) == len(set(drawn)) == min(count, len(available))
    assert set(drawn) <= available
    new = sum(number >= latest for number in drawn)
    num_new = sum(number >= latest for number in available)
    wanted = round(count * share)
    if num_new >= wanted and len(available) - num_new >= count - wanted:
        assert new == wanted


def test_the_newest_begin_with_the_latest_itself() -> None:
    # Of the episodes 0 to 9 those from 5 on are new: five of them fill a share of one.
    drawn = draw_episodes(torch.arange(10), 5, 5, 1.0, generator())
    assert sorted(drawn.tolist()) == [5, 6, 7, 8, 9]
    drawn = draw_episodes(torch.arange(10), 5, 5, 0.0, generator())
    assert sorted(drawn.tolist()) == [0, 1, 2, 3, 4]
    # A quarter of four is one new episode, and three are old.
    drawn = draw_episodes(torch.arange(10), 5, 4, 0.25, generator())
    assert int((drawn >= 5).sum()) == 1


def test_each_episode_is_drawn_equally_often() -> None:
    # 2 of 4: each in half of 2,000 draws, standard deviation .5 sqrt(2000) = 22.
    source, counts = generator(), torch.zeros(4)
    for _ in range(2000):
        counts[draw_episodes(torch.arange(4), 4, 2, 0.0, source)] += 1
    assert (counts - 1000).abs().max() < 5 * 22


def test_all_pairs_by_hand() -> None:
    first, second = all_pairs(4, torch.device("cpu"))
    pairs = sorted(zip(first.tolist(), second.tolist(), strict=True))
    assert pairs == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]


@given(
    query=st.sampled_from(["uniform", "recent_with_older", "newest_share"]),
    available=st.sets(st.integers(0, 50), min_size=2),
    latest=st.integers(0, 50),
    count=st.integers(1, 20),
    seed=st.integers(0, 2**31 - 1),
)
def test_drawn_pairs_are_disjoint(
    query: str, available: set[int], latest: int, count: int, seed: int
) -> None:
    first, second = draw_pairs(
        query, torch.tensor(sorted(available)), latest, count, 0.5, generator(seed)
    )
    sides = first.tolist() + second.tolist()
    assert len(first) == len(second) <= count
    assert len(sides) == len(set(sides))
    assert set(sides) <= available
    new = {n for n in available if n >= latest}
    if query == "recent_with_older":
        assert len(first) == min(count, len(new), len(available - new))
        assert all(
            (a in new) != (b in new) for a, b in zip(first.tolist(), second.tolist(), strict=True)
        )
    else:
        assert len(first) == min(count, len(available) // 2)


def test_a_recent_one_stands_against_an_older_one_each_equally_often() -> None:
    # 2 and 3 are recent, 0 and 1 older. Each of the four is in half of 1,000 pairs, deviation 16.
    counts, source = torch.zeros(4), generator()
    for _ in range(1000):
        for side in draw_pairs("recent_with_older", torch.arange(4), 2, 1, 0.5, source):
            counts[side] += 1
    assert (counts - 500).abs().max() < 5 * 16
    first, second = draw_pairs("recent_with_older", torch.arange(4), 2, 2, 0.5, source)
    assert sorted(first.tolist() + second.tolist()) == [0, 1, 2, 3]


def test_the_newest_share_is_one_of_all_sides() -> None:
    # Two pairs have four sides, a quarter of which is one: of 0 to 9, those from 5 on are new.
    first, second = draw_pairs("newest_share", torch.arange(10), 5, 2, 0.25, generator())
    assert len(first) == len(second) == 2
    assert int((torch.cat((first, second)) >= 5).sum()) == 1
    # A share of one leaves nothing old; drawn uniformly, two pairs of 20 are rarely all new.
    first, second = draw_pairs("newest_share", torch.arange(20), 16, 2, 1.0, generator())
    assert sorted(torch.cat((first, second)).tolist()) == [16, 17, 18, 19]
    first, second = draw_pairs("uniform", torch.arange(20), 16, 2, 1.0, generator())
    assert len(first) == 2
    assert min(first.min(), second.min()) < 16


def test_sides_are_drawn_at_random() -> None:
    # The newer episode comes first in half of 1,000 pairs; standard deviation 16.
    first, second = draw_pairs(
        "recent_with_older", torch.arange(2000), 1000, 1000, 0.5, generator()
    )
    assert abs(int((first > second).sum()) - 500) < 5 * 16


def test_uniform_pairs_favour_no_episode() -> None:
    counts, source = torch.zeros(8), generator()
    for _ in range(2000):  # 2 of 8 each time: 500 apiece, standard deviation 19
        for side in draw_pairs("uniform", torch.arange(8), 4, 1, 0.5, source):
            counts[side] += 1
    assert (counts - 500).abs().max() < 5 * 19


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7])
def test_an_odd_episode_is_left_out(count: int) -> None:
    first, second = disjoint_pairs(torch.arange(count), generator())
    assert len(first) == len(second) == count // 2
    assert len({*first.tolist(), *second.tolist()}) == count // 2 * 2


def test_rare_returns_are_drawn_as_often_as_common_ones() -> None:
    # Seven episodes return 0 and one 8: two ranges of the eight, so the rare one is drawn in half
    # of 1,000 draws; standard deviation 16.
    returns, source = torch.tensor([0.0] * 7 + [8.0]), generator()
    rare = sum(
        int(draw_stratified(torch.arange(10, 18), returns, 1, source)) == 17 for _ in range(1000)
    )
    assert abs(rare - 500) < 5 * 16


def test_returns_are_cut_into_eight_ranges_of_equal_width() -> None:
    # From -8 to 8 in steps of 2: three returns of -8, 0 and 1.5 in [0, 2), 5 in [4, 6), and 7 and 8
    # in the last, which holds its upper end. Each of the four ranges is drawn in a quarter of the
    # draws: 2,000 of 8,000, deviation 39.
    returns = torch.tensor([-8.0, -8.0, -8.0, 0.0, 1.5, 5.0, 7.0, 8.0])
    counts, source = torch.zeros(8), generator()
    for _ in range(8000):
        counts[draw_stratified(torch.arange(8), returns, 1, source)] += 1
    expected = torch.tensor([667.0, 667.0, 667.0, 1000.0, 1000.0, 2000.0, 1000.0, 1000.0])
    assert (counts - expected).abs().max() < 5 * 39


@given(
    returns=st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=20),
    count=st.integers(1, 30),
)
def test_stratified_episodes_differ(returns: list[float], count: int) -> None:
    available = torch.arange(len(returns)) + 5
    drawn = draw_stratified(available, torch.tensor(returns), count, generator()).tolist()
    assert len(drawn) == len(set(drawn)) == min(count, len(returns))
    assert set(drawn) <= set(available.tolist())


def test_equal_returns_are_drawn_uniformly() -> None:
    source, counts = generator(), torch.zeros(4)
    for _ in range(2000):  # 500 apiece, standard deviation 19
        counts[draw_stratified(torch.arange(4), torch.ones(4), 1, source)] += 1
    assert (counts - 500).abs().max() < 5 * 19


def test_disagreement_and_entropy_by_hand() -> None:
    # P by two models: (.5, .5), (.25, .75), (.75, .75).
    third = math.log(3)
    logits = torch.tensor([[0.0, -third, third], [0.0, third, third]])
    assert disagreement(logits).tolist() == pytest.approx([0.0, 0.25, 0.0], abs=1e-6)
    mixed = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    assert entropy(logits).tolist() == pytest.approx([math.log(2), math.log(2), mixed], abs=1e-6)
    # Certain models: no entropy and no NaN.
    assert entropy(torch.tensor([[200.0], [200.0]])).tolist() == [0.0]


def test_members_learn_from_samples_of_their_own() -> None:
    # A share of 1 - 1/e = .632 of 20,000 pairs, deviation .0034; two members share .632^2 = .3996,
    # deviation .0035.
    first = torch.arange(20_000)
    second = first.flip(0)
    one, other = (in_bootstrap(first, second, member) for member in (0, 1))
    assert float(one.double().mean()) == pytest.approx(0.632, abs=4 * 0.0034)
    assert float(other.double().mean()) == pytest.approx(0.632, abs=4 * 0.0034)
    assert float((one & other).double().mean()) == pytest.approx(0.3996, abs=4 * 0.0035)
    # The same first, or second, episode is not in every sample or in none.
    same = in_bootstrap(torch.zeros_like(first), second, 0)
    assert float(same.double().mean()) == pytest.approx(0.632, abs=4 * 0.0034)
    same = in_bootstrap(first, torch.zeros_like(second), 0)
    assert float(same.double().mean()) == pytest.approx(0.632, abs=4 * 0.0034)
    assert torch.equal(in_bootstrap(first[7:9], second[7:9], 1), other[7:9])
