"""What became of the questions, and when the user is told that there is nothing to learn from."""

import warnings

import pytest
import torch

from marl.preferences.buffer import Tally
from marl.utils.ranks import Ranks
from tests.ranks import in_ranks


def test_a_labeller_that_only_ties_is_reported_once() -> None:
    tally = Tally("return")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(9):
            tally.add(torch.full((4,), 0.5))
            assert tally.take()["preference/informative_share"] == 0.0
    tally.add(torch.full((4,), 0.5))
    with pytest.warns(UserWarning, match="all 40 pairs that labeller return has"):
        tally.take()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tally.add(torch.full((4,), 0.5))
        tally.take()


@pytest.mark.parametrize("stratified", [False, True])
def test_rare_preferences_are_reported_once_unless_drawn_often(stratified: bool) -> None:
    tally = Tally("return", stratified=stratified)
    reported = []
    for turn in range(61):
        # One decided pair of twenty, 5 %, is rare; a turn with one of five, 20 %, is not.
        ties = 4 if turn == 3 else 19
        tally.add(torch.tensor([1.0] + [0.5] * ties))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            tally.take()
        reported += [(turn, str(w.message)) for w in caught]
    expected = [] if stratified else [33]
    assert [turn for turn, _ in reported] == expected
    assert all('query = "stratified"' in message for _, message in reported)


def test_one_decided_pair_of_ten_is_not_rare() -> None:
    tally = Tally("return")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(40):
            tally.add(torch.tensor([1.0] + [0.5] * 9))
            assert tally.take()["preference/informative_share"] == pytest.approx(0.1)


def test_counts_of_the_whole_run_and_since_the_last_call() -> None:
    # Five pairs: one without an answer, two ties, two decided. Then none, and then two, of which
    # one is without an answer.
    tally, no_answer = Tally("return"), float("nan")
    tally.add(torch.tensor([1.0, no_answer, 0.5]))
    tally.add(torch.tensor([0.5, 0.25]))
    assert tally.totals() == (5, 4)
    assert tally.take() == {
        "preference/asked": 5.0,
        "preference/answered": 4.0,
        "preference/abstained_share": pytest.approx(0.2),
        "preference/informative_share": 0.5,
    }
    assert tally.totals() == (5, 4)
    assert tally.take() == {
        "preference/asked": 0.0,
        "preference/answered": 0.0,
        "preference/abstained_share": pytest.approx(no_answer, nan_ok=True),
        "preference/informative_share": pytest.approx(no_answer, nan_ok=True),
    }
    tally.add(torch.tensor([no_answer, 0.0]))
    other = Tally("return")
    other.load_state_dict(tally.state_dict())
    for each in (tally, other):
        assert each.totals() == (7, 5)
        assert each.is_informative
        assert each.take()["preference/abstained_share"] == 0.5
        assert each.totals() == (7, 5)


def test_calls_without_an_answer_are_neither_rare_nor_tied() -> None:
    tally = Tally("return")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(9):
            tally.take()
            tally.add(torch.tensor([0.5]))
            tally.take()
    tally.add(torch.tensor([0.5]))
    with pytest.warns(UserWarning, match="all 10 pairs"):
        tally.take()
    # Ties are not rare preferences before there is one.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for turn in range(49):
            tally.add(torch.tensor([1.0 if turn >= 20 else 0.5] + [0.5] * 19))
            tally.take()
        assert tally.is_informative
        tally.take()
    tally.add(torch.tensor([1.0] + [0.5] * 19))
    with pytest.warns(UserWarning, match="calls over 90% of the pairs ties"):
        tally.take()


def test_a_labeller_without_answers_is_not_told_of_again_when_it_ties() -> None:
    tally = Tally("return")
    tally.add(torch.tensor([float("nan")]))
    with pytest.warns(UserWarning, match="has answered none of 1 pairs"):
        tally.take()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(20):
            tally.add(torch.tensor([0.5]))
            tally.take()


def test_two_processes_count_together_and_one_tells() -> None:
    answers = [[1.0, 0.5, float("nan")], [0.5, 0.5]]

    def work(ranks: Ranks) -> tuple[tuple[int, int], dict[str, float], bool]:
        tally = Tally("return", tells=ranks.rank == 0)
        tally.add(torch.tensor(answers[ranks.rank]))
        tally.pool(ranks)
        counts = tally.take()
        return tally.totals(), counts, tally.is_informative

    for totals, counts, is_informative in in_ranks(2, work):
        assert totals == (5, 4)
        assert counts == {
            "preference/asked": 5.0,
            "preference/answered": 4.0,
            "preference/abstained_share": pytest.approx(0.2),
            "preference/informative_share": 0.25,
        }
        assert is_informative
    silent = Tally("return", tells=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        silent.add(torch.tensor([float("nan")]))
        silent.take()
        for label in [0.5] * 10 + [1.0]:
            silent.add(torch.tensor([label] + [0.5] * 19))
            silent.take()
        for _ in range(30):
            silent.add(torch.tensor([1.0] + [0.5] * 19))
            silent.take()


def test_ties_of_two_processes_do_not_inform() -> None:
    def work(ranks: Ranks) -> bool:
        tally = Tally("return")
        tally.add(torch.tensor([0.5]))
        tally.pool(ranks)
        return tally.is_informative

    assert in_ranks(2, work) == [False, False]


def test_one_preference_is_enough_to_learn_from() -> None:
    tally = Tally("return")
    tally.add(torch.tensor([0.5, 1.0]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(20):
            tally.take()
            tally.add(torch.full((4,), 0.5))
    assert tally.is_informative
