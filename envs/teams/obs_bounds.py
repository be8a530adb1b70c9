"""The bounds that agents' observation spaces promise, and what is seen outside of them.

Axes: E environment copies, N agents, O observation features.
"""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from gymnasium.spaces import Box, MultiBinary, Space

from envs.base import FloatArray


class ObsBoundsWarning(UserWarning):
    """An agent observed what its space rules out; training goes on, `check_env` counts a fault."""


class ObsBounds:
    """The bounds of a team's observations, widened by what rounding may do to them."""

    def __init__(self, names: Sequence[str], spaces: Sequence[Space[Any]]) -> None:
        """`names` are the agents', for messages."""
        self._names = names
        self._shapes = [space.shape or () for space in spaces]
        sizes = [int(np.prod(shape)) for shape in self._shapes]
        self._low = np.full((len(spaces), max(sizes)), -np.inf)
        self._high = np.full((len(spaces), max(sizes)), np.inf)
        for agent, space in enumerate(spaces):
            if isinstance(space, Box):
                self._low[agent, : sizes[agent]] = space.low.reshape(-1)
                self._high[agent, : sizes[agent]] = space.high.reshape(-1)
            elif isinstance(space, MultiBinary):
                self._low[agent, : sizes[agent]], self._high[agent, : sizes[agent]] = 0.0, 1.0
        self.any = bool(np.isfinite(self._low).any() or np.isfinite(self._high).any())
        """Whether there is anything to look at."""
        with np.errstate(over="ignore"):  # what float32 cannot hold is no bound
            self._lowest = (self._low - _rounding(self._low)).astype(np.float32)
            self._highest = (self._high + _rounding(self._high)).astype(np.float32)

    def violation(self, obs: FloatArray) -> str | None:
        """Return which of the (E, N, O) observations lies outside, or None.

        Rows of zeros do not count: they may be those of agents that take no part.
        """
        width = self._low.shape[1]
        seen = obs[:, :, :width]
        outside = (seen < self._lowest) | (seen > self._highest)
        if not outside.any():
            return None
        found = np.argwhere(outside & seen.any(axis=2, keepdims=True))
        if not len(found):
            return None
        copy, agent, feature = (int(i) for i in found[0])
        index = [int(i) for i in np.unravel_index(feature, self._shapes[agent])]
        value, low, high = (a[agent, feature] for a in (seen[copy], self._low, self._high))
        return (
            f"{self._names[agent]} observed {value:g} at {index} (copy {copy}); its space promises "
            f"{low:g} to {high:g}; correct the space, or scale or clip what is observed"
        )


@runtime_checkable
class BoundedTeam(Protocol):
    """A `Team` whose observation spaces have bounds."""

    @property
    def obs_bounds(self) -> ObsBounds:
        """The bounds."""
        ...


def _rounding(bounds: FloatArray) -> FloatArray:
    """Return how far float32 arithmetic may pass bounds; the infinite ones stay."""
    return 1e-5 * np.maximum(1.0, np.abs(np.where(np.isfinite(bounds), bounds, 0.0)))
