"""What became of the questions, and when the user is told that there is nothing to learn from."""

import warnings

import pytest
import torch

from marl.preferences.tally import TIED_TURNS, Tally


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


def test_one_preference_is_enough_to_learn_from() -> None:
    tally = Tally("return")
    tally.add(torch.tensor([0.5, 1.0]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2 * TIED_TURNS):
            tally.take()
            tally.add(torch.full((4,), 0.5))
    assert tally.is_informative
