"""A descent keeps the weights of its lowest held-out loss, and ends when that rises."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import nn

from marl.rewards.budget import FitResult, descend


def walked(
    losses: Sequence[float], *, steps: int, block: int, patience: int = 2, last: int = 1000
) -> tuple[FitResult, float]:
    """Return how a descent went that adds 1 to a weight per step, up to `last` steps, and where it
    ended; `losses` are measured in this order."""
    weight = nn.Parameter(torch.zeros(()))
    measured = iter(losses)
    taken = 0

    def step() -> bool:
        nonlocal taken
        if taken == last:
            return False
        taken += 1
        with torch.no_grad():
            weight.add_(1.0)
        return True

    descent = descend(
        step, lambda: next(measured), [weight], steps=steps, block=block, patience=patience
    )
    assert taken == descent.steps
    return descent, weight.item()


@pytest.mark.parametrize(
    ("losses", "taken", "kept", "lowest"),
    [
        ([3.0, 2.0, 1.0, 1.5, 1.2], 8, 4, 1.0),  # twice in a row not below 1: stop
        ([3.0, 2.0, 2.5, 1.0, 0.5, 0.4], 10, 10, 0.4),  # one failure is forgiven
        ([1.0, 1.0, 2.0], 4, 0, 1.0),  # never better: the weights of before
    ],
)
def test_the_best_weights_are_kept(
    losses: list[float], taken: int, kept: int, lowest: float
) -> None:
    descent, weight = walked(losses, steps=10, block=2)
    assert descent == FitResult(steps=taken, kept=kept, first=losses[0], lowest=lowest)
    assert weight == kept


def test_without_held_out_data_all_steps_are_taken() -> None:
    descent, weight = walked([math.nan], steps=7, block=2)
    assert (descent.steps, descent.kept, weight) == (7, 7, 7.0)
    assert math.isnan(descent.lowest)


def test_a_last_block_may_be_short_and_data_may_run_out() -> None:
    descent, weight = walked([3.0, 2.0, 1.0], steps=5, block=3)
    assert (descent.steps, descent.kept, weight) == (5, 5, 5.0)
    descent, weight = walked([3.0, 2.0, 1.0], steps=50, block=3, last=4)
    assert (descent.steps, descent.kept, weight) == (4, 4, 4.0)
