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
    but has at least `MIN_BLOCK` steps, and further ones may follow while the fit takes no more than
    `fit_share` of the rows that it and the policy's update pass through their networks.
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


class OverfitWarning:
    """Warns once when a reward knows its own answers and nothing of the others.

    That is so when the loss of held-out answers, averaged over fits, is above a coin's, log 2, and
    that of the answers it is fitted to below half of one. The team may then learn to do what no
    answer was about, and end worse than it began.
    """

    def __init__(self) -> None:
        self.fits = 0
        """Fits that held-out answers were there for."""
        self.own = self.held_out = math.nan
        """Averages of the losses, in nats."""
        self.has_warned = False

    def update(self, own: float, held_out: float, *, tells: bool = True) -> None:
        """Take the losses of one fit into account."""
        self.fits += 1
        seen = min(self.fits, AVERAGED_FITS)
        self.own = own if seen == 1 else self.own + (own - self.own) / seen
        self.held_out = held_out if seen == 1 else self.held_out + (held_out - self.held_out) / seen
        coin = math.log(2.0)
        if seen < AVERAGED_FITS or self.has_warned or self.held_out < coin or self.own > coin / 2:
            return
        self.has_warned = True
        if tells:
            warnings.warn(
                f"the reward knows the answers it is fitted to (loss {self.own:.2f}) and not the "
                f"held-out ones ({self.held_out:.2f}; {coin:.2f} is guessing): there are too few "
                "answers, or too many wrong ones, and the team may get worse by it. More answers "
                "help (preferences.queries_per_iteration, max_labels), or a better labeller",
                stacklevel=2,
            )

    def state_dict(self) -> dict[str, Any]:
        """Return what was seen, and whether it was told."""
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


def never() -> bool:
    """Return False: nothing stops a fit early."""
    return False


def descend(
    step: Callable[[], bool],
    held_out: Callable[[], float],
    parameters: Iterable[nn.Parameter],
    *,
    steps: int,
    block: int,
    patience: int = PATIENCE,
    stop: Callable[[], bool] = never,
) -> FitResult:
    """Take up to `steps` steps and keep the weights of the lowest held-out loss.

    It is measured before the first step and after every `block` of them, and the fit ends where it
    fails to fall `patience` times in a row, or when `step` returns that there is nothing to learn
    from. Weights before the first step may be the best ones. Without held-out data (NaN) all steps
    are taken and the last weights stay. Once `stop` returns True no further step is taken.
    """
    weights = list(parameters)
    first = lowest = held_out()
    best = kept_weights(weights)
    taken = kept = failed = 0
    while taken < steps and failed < patience:
        end = min(taken + block, steps)
        while taken < end and not stop() and step():
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
