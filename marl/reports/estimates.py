"""Statistics over seeds: interquartile means, bootstrap intervals, probability of improvement.

As Agarwal et al. (2021, arXiv 2108.13264) define them, and with the numbers of their library
rliable, which would bring arch, statsmodels and pandas. Resampling is stratified: the seeds of each
task and of every group are drawn anew from themselves. It has a generator of its own, so that the
same numbers give the same interval.

Axes: K seeds, R bootstrap samples, G points of a curve.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating[Any]]

REPETITIONS = 2000
"""Bootstrap samples behind an interval."""
LEAST_SEEDS = 3
"""With fewer seeds no interval is stated."""


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % percentile bootstrap interval; NaN where there is none."""

    value: float
    low: float = np.nan
    high: float = np.nan


def iqm(values: Array, axis: int = 0) -> Array:
    """Return the interquartile mean: that of the middle half, a quarter cut at each end.

    Of fewer than four values nothing is cut.
    """
    ordered = np.sort(np.moveaxis(values, axis, 0), axis=0)
    cut = len(ordered) // 4
    middle: Array = ordered[cut : len(ordered) - cut].mean(axis=0)
    return middle


def estimate(finals: Sequence[float]) -> Estimate:
    """Return the interquartile mean over (K,) seeds and its interval."""
    values = np.asarray(finals, np.float64)
    point = float(iqm(values))
    if len(values) < LEAST_SEEDS:
        return Estimate(point)
    return Estimate(point, *_percentiles(iqm(values[_picks(len(values))], axis=1)))


def band(curves: Array) -> tuple[Array, Array, Array]:
    """Return the interquartile mean over the seeds of (K, G) curves, and its interval's ends (G,).

    The ends are NaN where there are too few seeds.
    """
    middle = iqm(curves)
    if len(curves) < LEAST_SEEDS:
        return middle, np.full_like(middle, np.nan), np.full_like(middle, np.nan)
    samples = np.stack([iqm(curves[picks]) for picks in _picks(len(curves))])
    low, high = np.percentile(samples, (2.5, 97.5), axis=0)
    return middle, low, high


def improvement(pairs: Sequence[tuple[Sequence[float], Sequence[float]]]) -> Estimate:
    """Return the probability that a seed of the first group is above one of the second.

    `pairs` holds the seeds of both groups for every task; tasks count alike, and a tie is half.
    """
    tasks = [(np.asarray(x, np.float64), np.asarray(y, np.float64)) for x, y in pairs]
    point = float(np.mean([_above(x[np.newaxis], y[np.newaxis])[0] for x, y in tasks]))
    if any(min(len(x), len(y)) < LEAST_SEEDS for x, y in tasks):
        return Estimate(point)
    rng = np.random.default_rng(0)
    samples = [_above(x[_picks(len(x), rng)], y[_picks(len(y), rng)]) for x, y in tasks]
    return Estimate(point, *_percentiles(np.mean(samples, axis=0)))


def verdict(ours: Estimate, other: Estimate) -> str:
    """Return `above` or `below` where the intervals are apart, else `not apart`; `?` without."""
    if np.isnan([ours.low, other.low]).any():
        return "?"
    if ours.low > other.high:
        return "above"
    return "below" if ours.high < other.low else "not apart"


def _above(x: Array, y: Array) -> Array:
    """Return (R,) shares of pairs in which a seed of (R, K) is above one of (R, K'); a tie half."""
    gaps = x[:, :, np.newaxis] - y[:, np.newaxis, :]
    shares: Array = ((gaps > 0) + 0.5 * (gaps == 0)).mean(axis=(1, 2))
    return shares


def _picks(seeds: int, rng: np.random.Generator | None = None) -> npt.NDArray[np.int64]:
    """Return (R, K) seeds drawn from K, with replacement."""
    return (rng or np.random.default_rng(0)).integers(seeds, size=(REPETITIONS, seeds))


def _percentiles(samples: Array) -> tuple[float, float]:
    low, high = np.percentile(samples, (2.5, 97.5))
    return float(low), float(high)


def interpolated(
    steps: Sequence[npt.NDArray[Any]], values: Sequence[Array], points: int
) -> tuple[Array, Array]:
    """Return G steps that all K curves have reached, and each curve there, (K, G).

    Between two points a curve is a straight line.
    """
    start, end = max(s[0] for s in steps), min(s[-1] for s in steps)
    grid = np.linspace(start, end, points)
    return grid, np.stack([np.interp(grid, s, v) for s, v in zip(steps, values, strict=True)])


Shown = Callable[[float], str]


def number(value: float) -> str:
    """Return a return with the digits that matter: two below 100, none above."""
    return f"{value:,.2f}" if abs(value) < 100 else f"{value:,.0f}"


def shown(value: Estimate, as_text: Shown = number) -> str:
    """Return an estimate as `value [low, high]`."""
    if np.isnan(value.low):
        return as_text(value.value)
    return f"{as_text(value.value)} [{as_text(value.low)}, {as_text(value.high)}]"
