"""Random numbers for many environment copies at once, without a generator object per copy.

Each copy has a seed and a count of the episodes it has begun; a draw is a hash of the two and
the draw's index (SplitMix64, Steele, Lea and Flood, OOPSLA 2014). Saving the seeds and the
counts saves the randomness, and no copy's draws depend on another's.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return SplitMix64's output function of each element."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def copy_seeds(seed: int, num_envs: int) -> npt.NDArray[np.uint64]:
    """Return (E,) distinct 64-bit seeds, one per environment copy, derived from one seed."""
    copies = np.arange(1, num_envs + 1, dtype=np.uint64)
    return _mix(_mix(np.full(num_envs, seed % 2**64, np.uint64)) + copies * _GOLDEN)


def uniform(
    seeds: npt.NDArray[np.uint64], counts: npt.NDArray[Any], size: int
) -> npt.NDArray[np.float64]:
    """Return (E, size) numbers in [0, 1) that depend only on each copy's seed and count."""
    streams = _mix(seeds + counts.astype(np.uint64) * _GOLDEN)
    draws = np.arange(1, size + 1, dtype=np.uint64) * _GOLDEN
    return (_mix(streams[:, None] + draws) >> np.uint64(11)) * np.float64(2.0**-53)


def normal(
    seeds: npt.NDArray[np.uint64], counts: npt.NDArray[Any], size: int
) -> npt.NDArray[np.float64]:
    """Return (E, size) standard normal numbers by the Box-Muller transform of `uniform`."""
    u = uniform(seeds, counts, 2 * size)
    radius = np.sqrt(-2.0 * np.log1p(-u[:, :size]))
    return radius * np.cos(2.0 * np.pi * u[:, size:])
