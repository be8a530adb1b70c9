"""Where the parts of composite actions stand among the columns of an action.

A choice among k is one-hot in k columns, a number in [-1, 1] is one (`EnvSpec.action_parts`). Axes
are those of `envs.base`; P: choices of the agent that has most of them, K: columns of the largest.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from envs.base import BoolArray, FloatArray
from envs.errors import EnvError

_MOST = 10_000_000
"""Columns of all agents' choices, each counted as large as the largest."""


@dataclass(frozen=True)
class PartLayout:
    """The columns of a team's parts."""

    columns: npt.NDArray[np.int64]
    """(N, P, K) the columns of each choice; A, behind the last, where there are none."""
    slots: npt.NDArray[np.int64]
    """(N, A) where the column of a choice stands in P * K; 0 for other columns."""
    is_choice: BoolArray
    """(N, A) the columns of choices."""
    is_number: BoolArray
    """(N, A) the columns of numbers."""

    def by_part(self, x: npt.NDArray[np.generic], fill: float) -> FloatArray:
        """Return (..., N, A) columns as (..., N, P, K), `fill` where there are none."""
        padded = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, 1)], constant_values=fill)
        agents = np.arange(len(self.columns))[:, None, None]
        found: FloatArray = padded[..., agents, self.columns]
        return found

    def one_hot(self, scores: FloatArray) -> FloatArray:
        """Return 1 in the column of largest score of each choice, 0 in all others; (..., N, A)."""
        parts = self.by_part(scores, -np.inf)
        best = parts.argmax(axis=-1)[..., None] == np.arange(parts.shape[-1])
        flat = best.reshape(*scores.shape[:-1], -1)
        slots = np.broadcast_to(self.slots, scores.shape)
        return (np.take_along_axis(flat, slots, axis=-1) & self.is_choice).astype(np.float32)

    @property
    def exists(self) -> BoolArray:
        """(N, P) whether an agent has so many choices."""
        found: BoolArray = self.columns[..., 0] < self.is_choice.shape[1]
        return found


@cache
def part_layout(action_parts: tuple[tuple[int, ...], ...]) -> PartLayout:
    """Return the layout of a team with these `EnvSpec.action_parts`."""
    sizes = [sum(max(part, 1) for part in parts) for parts in action_parts]
    choices = [[part for part in parts if part] for parts in action_parts]
    num_agents, width = len(sizes), max(sizes)
    most = max(1, *map(len, choices))
    largest = max(1, *(part for parts in choices for part in parts), 1)
    if num_agents * most * largest > _MOST:
        raise EnvError(
            f"a team of {num_agents} agents with up to {most} choices among up to {largest} is too "
            "large; make the choices more alike in size, or fewer"
        )
    columns = np.full((num_agents, most, largest), width)
    slots = np.zeros((num_agents, width), np.int64)
    kinds = np.zeros((2, num_agents, width), np.bool_)
    for agent, parts in enumerate(action_parts):
        begin = place = 0
        for part in parts:
            end = begin + max(part, 1)
            kinds[0 if part else 1, agent, begin:end] = True
            if part:
                columns[agent, place, :part] = np.arange(begin, end)
                slots[agent, begin:end] = place * largest + np.arange(part)
                place += 1
            begin = end
    return PartLayout(columns, slots, *kinds)


def wrong_parts(
    layout: PartLayout, actions: FloatArray, action_mask: BoolArray | None
) -> BoolArray:
    """Return (E, N), True where composite actions are none: not one-hot and legal, or too large."""
    numbers = np.where(layout.is_number, actions, 0.0)
    choices = np.where(layout.is_choice, actions, 0.0)
    wrong = ~(np.abs(numbers) <= 1.0 + 1e-6) | ((choices != 0.0) & (choices != 1.0))
    if action_mask is not None:
        wrong |= (choices == 1.0) & ~action_mask
    counts = layout.by_part(choices, 0.0).sum(axis=-1)
    found: BoolArray = wrong.any(axis=-1) | (counts != layout.exists).any(axis=-1)
    return found
