"""Gradient steps that end where held-out data says so, and keep the best weights."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

BLOCKS = 20
"""Measurements of a whole fit."""
PATIENCE = 3
"""Measurements without a new lowest loss after which a fit ends: one may fail by chance."""


@dataclass(frozen=True, kw_only=True)
class Descent:
    """How a fit went; losses are held-out ones, NaN where nothing is held out."""

    steps: int
    """Gradient steps taken."""
    kept: int
    """Steps behind the weights that were kept."""
    first: float
    """Loss before the first step."""
    lowest: float
    """Loss of the weights that were kept."""


def descend(
    step: Callable[[], bool],
    held_out: Callable[[], float],
    parameters: Iterable[nn.Parameter],
    *,
    steps: int,
    block: int,
    patience: int = PATIENCE,
) -> Descent:
    """Take up to `steps` steps and keep the weights of the lowest held-out loss.

    It is measured before the first step and after every `block` of them, and the fit ends where it
    fails to fall `patience` times in a row, or when `step` returns that there is nothing to learn
    from. Weights before the first step may be the best ones. Without held-out data (NaN) all steps
    are taken and the last weights stay.
    """
    weights = list(parameters)
    first = lowest = held_out()
    best = kept_weights(weights)
    taken = kept = failed = 0
    while taken < steps and failed < patience:
        end = min(taken + block, steps)
        while taken < end and step():
            taken += 1
        if math.isnan(lowest):
            kept = taken
        elif (loss := held_out()) < lowest:
            lowest, best, kept, failed = loss, kept_weights(weights), taken, 0
        else:
            failed += 1
        if taken < end:
            break
    if not math.isnan(lowest):
        with torch.no_grad():
            for weight, value in zip(weights, best, strict=True):
                weight.copy_(value)
    return Descent(steps=taken, kept=kept, first=first, lowest=lowest)


def kept_weights(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    """Return copies of the parameters' values."""
    return [parameter.detach().clone() for parameter in parameters]
