"""Random numbers of a batch of environments without a generator object for each, and actions.

Each environment has a seed and a count of the episodes it has begun; a draw is a hash of the two
and of the draw's index (SplitMix64: Steele, Lea and Flood, OOPSLA 2014). Saving the seeds and the
counts saves the randomness, and no environment's draws depend on another's.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from envs.base import BoolArray, EnvSpec
from envs.parts import part_layout

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return SplitMix64's output function of each element."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def env_seeds(seed: int, num_envs: int) -> npt.NDArray[np.uint64]:
    """Return (E,) distinct 64-bit seeds, one per environment, derived from one seed."""
    numbers = np.arange(1, num_envs + 1, dtype=np.uint64)
    return _mix(_mix(np.full(num_envs, seed % 2**64, np.uint64)) + numbers * _GOLDEN)


def uniform(
    seeds: npt.NDArray[np.uint64], counts: npt.NDArray[Any], size: int
) -> npt.NDArray[np.float64]:
    """Return (E, size) numbers in [0, 1) that depend only on each environment's seed and count."""
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


def random_actions(
    spec: EnvSpec, rng: np.random.Generator, action_mask: BoolArray | None
) -> npt.NDArray[Any]:
    """Return (E, N) integers uniform over the legal choices, or (E, N, A) floats in [-1, 1].

    Dimensions beyond an agent's own size are zero; the choices of composite actions are one-hot.
    """
    shape = (spec.num_envs, spec.num_agents, spec.action_size)
    own = np.arange(spec.action_size) < np.asarray(spec.action_sizes)[:, None]
    if spec.action_kind == "continuous":
        return np.where(own, rng.uniform(-1.0, 1.0, shape), 0.0).astype(np.float32)
    legal = own if action_mask is None else own & action_mask
    if spec.action_kind == "composite":
        layout, drawn = part_layout(spec.action_parts), rng.uniform(-1.0, 1.0, shape)
        chosen = layout.one_hot(np.where(legal, drawn, -2.0))
        return np.where(layout.is_number, drawn, chosen).astype(np.float32)
    choices: npt.NDArray[np.int64] = np.where(legal, rng.random(shape), -1.0).argmax(axis=2)
    return choices
