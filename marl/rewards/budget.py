"""How long a reward model is fitted: gradient steps, early stopping, pace of target networks."""

import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from marl.config import Config

AVERAGED_FITS = 20
"""Fits over which the drift guard averages the loss."""
BLOCKS = 20
"""Measurements of a whole fit."""
MIN_BLOCK = 10
"""Gradient steps of a block that follows the data, at least: fewer say nothing about the fit."""
PATIENCE = 3
"""Measurements without a new lowest loss after which a fit ends: one may fail by chance."""


@dataclass(frozen=True, kw_only=True)
class FitBudget:
    """Budget of a fit, in counts rather than seconds, so that a run can be repeated exactly."""

    block: int
    """Gradient steps that are taken in any case, and in every further block."""
    max_rows: int = 0
    """Rows passed through the networks at which a fit takes no further step; 0: one block only."""


def fit_budget(config: Config) -> FitBudget:
    """Return the budget of every fit of a run.

    A constant ``reward.gradient_steps`` is one block. Otherwise the first block follows the data
    but has at least `MIN_BLOCK` steps, and the fit may take `fit_share` of the rows that it and the
    policy's update pass through their networks, whose share is 1 - `fit_share`.
    """
    reward = config.reward
    if reward.gradient_steps:
        return FitBudget(block=reward.gradient_steps)
    policy_rows = config.batch_steps * config.learner.epochs
    return FitBudget(
        block=max(MIN_BLOCK, -(-config.batch_steps // reward.env_steps_per_gradient_step)),
        max_rows=int(policy_rows * reward.fit_share / (1.0 - reward.fit_share)),
    )


class DriftGuard:
    """Slows the target networks of V down when the loss of the rewards rises.

    With gamma_R near 1, V and Q can chase each other: the reward's scale grows, preferences that
    were once learned are lost again, and the loss that had fallen rises. When its running average
    stands `tolerance` nats above the lowest so far, the Polyak rate is halved and the
    measurement begins anew. The first fits only fill the average. A tolerance of 0 switches the
    guard off.
    """

    def __init__(self, rate: float, tolerance: float) -> None:
        self.rate = rate
        self.tolerance = tolerance
        self.fits = 0
        self.average = math.nan
        self.lowest = math.inf

    def update(self, loss: float, *, tells: bool = True) -> None:
        """Take the mean loss of one fit into account; a halved rate is told where it `tells`."""
        self.fits += 1
        seen = min(self.fits, AVERAGED_FITS)
        self.average = loss if seen == 1 else self.average + (loss - self.average) / seen
        if seen < AVERAGED_FITS:
            return
        self.lowest = min(self.lowest, self.average)
        if self.tolerance > 0.0 and self.average > self.lowest + self.tolerance:
            self.rate /= 2.0
            if tells:
                warnings.warn(
                    f"the reward's loss rose from {self.lowest:.2f} to {self.average:.2f}; "
                    f"reward.target_rate is halved to {self.rate:g} from here on. "
                    "If it keeps rising, lower reward.gamma",
                    stacklevel=2,
                )
            self.lowest = self.average

    def state_dict(self) -> dict[str, Any]:
        """Return the rate and what was seen."""
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        vars(self).update(state)


@dataclass(frozen=True, kw_only=True)
class FitResult:
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
) -> FitResult:
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
    return FitResult(steps=taken, kept=kept, first=first, lowest=lowest)


def kept_weights(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    """Return copies of the parameters' values."""
    return [parameter.detach().clone() for parameter in parameters]
