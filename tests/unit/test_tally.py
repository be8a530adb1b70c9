"""What became of the questions, and when the user is told that there is nothing to learn from."""

import warnings

import pytest
import torch

from marl.preferences.buffer import RARE_TURNS, TIED_TURNS, Tally


def test_a_labeller_that_only_ties_is_reported_once() -> None:
    tally = Tally("return")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(TIED_TURNS - 1):
            tally.add(torch.full((4,), 0.5))
            assert tally.take()["preference/informative_share"] == 0.0
    tally.add(torch.full((4,), 0.5))
    with pytest.warns(UserWarning, match=f"all {4 * TIED_TURNS} pairs that labeller return has"):
        tally.take()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tally.add(torch.full((4,), 0.5))
        tally.take()


@pytest.mark.parametrize("stratified", [False, True])
def test_rare_preferences_are_reported_once_unless_drawn_often(stratified: bool) -> None:
    tally = Tally("return", stratified=stratified)
    reported = []
    for turn in range(2 * RARE_TURNS + 1):
        # One decided pair of twenty, 5 %, is rare; a turn with one of five, 20 %, is not.
        ties = 4 if turn == 3 else 19
        tally.add(torch.tensor([1.0] + [0.5] * ties))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            tally.take()
        reported += [(turn, str(w.message)) for w in caught]
    expected = [] if stratified else [3 + RARE_TURNS]
    assert [turn for turn, _ in reported] == expected
    assert all('query = "stratified"' in message for _, message in reported)


def test_one_preference_is_enough_to_learn_from() -> None:
    tally = Tally("return")
    tally.add(torch.tensor([0.5, 1.0]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2 * TIED_TURNS):
            tally.take()
            tally.add(torch.full((4,), 0.5))
    assert tally.is_informative
