"""How an agent observes and acts in the environment behind a `VecEnv`, e.g. a PettingZoo one.

`VecEnv`s show every agent a vector, and take integers from 0, numbers in [-1, 1], or both in one
vector. A `NativeSpace` translates; it holds plain values only, and so fits into a checkpoint.
Axis: A, the choices and numbers of an action.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from envs.errors import EnvError

Vector = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Picture:
    """How a picture of bytes is read: made smaller by the mean of squares of pixels, or grey."""

    height: int
    """In pixels, of what the environment shows."""
    width: int
    channels: int
    """0: the environment's array has no axis of them."""
    channels_first: bool = False
    """Whether that axis is the first, not the last."""
    shrink: int = 1
    """Side in pixels of the squares; what is left over at the edges is cut off."""
    grey: bool = False
    """Whether the mean of the channels is taken."""

    @property
    def reduced(self) -> tuple[int, int, int]:
        """Height, width and channels of what is read."""
        channels = 1 if self.grey else max(1, self.channels)
        return self.height // self.shrink, self.width // self.shrink, channels

    def read(self, array: Vector) -> Vector:
        """Return the `reduced` picture of an array of the environment's, uint8."""
        height, width, _ = self.reduced
        side, given = self.shrink, array
        if self.channels_first:
            given = np.moveaxis(given, 0, -1)
        elif not self.channels:
            given = given[..., None]
        if side == 1 and not self.grey:
            return np.ascontiguousarray(given)
        # Rows first: a sum along an axis that is not the last is of whole rows of bytes at once.
        cut = np.ascontiguousarray(given[: height * side, : width * side])
        rows = cut.reshape(height, side, -1).sum(axis=1, dtype=np.uint32)
        total = rows.reshape(height, width, side, -1).sum(axis=2, dtype=np.uint32)
        count = side * side
        if self.grey:
            total, count = total.sum(axis=2, keepdims=True, dtype=np.uint32), count * cut.shape[2]
        return ((total + count // 2) // count).astype(np.uint8)


@dataclass(frozen=True, kw_only=True)
class SpaceLeaf:
    """One array of numbers or of integers in an agent's own observation or action."""

    path: tuple[str, ...] = ()
    """Where it stands in a nested space: ``.key`` in a dict, ``[0]`` in a tuple; empty: it is the
    whole."""
    shape: tuple[int, ...] = ()
    """Shape of the array; empty: one number or integer."""
    choices: tuple[int, ...] = ()
    """How many values each integer has, flattened; empty: these are numbers."""
    start: tuple[int, ...] = ()
    """The smallest value of each integer."""
    low: tuple[float, ...] = ()
    """Lower bounds of an action's numbers, flattened."""
    high: tuple[float, ...] = ()
    """Upper bounds."""
    dtype: str = "float32"
    """NumPy's name for the type of an action's array."""
    picture: Picture | None = None
    """How the array is read as a picture; None: it is none, or read as numbers."""

    @cached_property
    def size(self) -> int:
        """How many features or columns it becomes: every integer is one-hot, numbers stay."""
        if self.picture is not None:
            return math.prod(self.picture.reduced)
        return sum(self.choices) if self.choices else int(np.prod(self.shape))

    @property
    def place(self) -> str:
        """Where it stands, for messages; empty if it is the whole."""
        return f" at {''.join(self.path)}" if self.path else ""

    @cached_property
    def keys(self) -> tuple[str | int, ...]:
        """What leads to it, one key of a dict or index of a tuple after the other."""
        return tuple(int(step[1:-1]) if step[0] == "[" else step[1:] for step in self.path)

    def found_in(self, value: Any) -> Any:
        """Return this leaf's part of a nested value."""
        for key in self.keys:
            try:
                value = value[key]
            except (KeyError, IndexError, TypeError) as error:
                raise EnvError(
                    f"observed {described(value)} without {key!r}; its space promises something"
                    f"{self.place}"
                ) from error
        return value

    def write(self, obs: Any, out: Vector) -> None:
        """Write this leaf's part of an observation into `size` zeros.

        Raises `EnvError` with what was expected.
        """
        seen = self.found_in(obs)
        array = np.asarray(seen)
        fits = array.shape == self.shape or (self.shape == () and array.size == 1)
        if not fits or array.dtype.kind not in "fiub":
            what = "integers" if self.choices else "numbers"
            raise EnvError(
                f"observed {described(seen)}{self.place}; its space promises {what} of shape "
                f"{self.shape}"
            )
        if self.picture is not None:
            if array.dtype != np.uint8:
                raise EnvError(
                    f"observed a picture of {array.dtype}{self.place}; its space promises uint8"
                )
            out[:] = self.picture.read(array).reshape(-1)
            return
        if not self.choices:
            out[:] = array.reshape(-1)
            return
        for value, (first, count, start) in zip(array.ravel().tolist(), self._layout, strict=True):
            if not 0 <= value - start < count or value % 1:
                raise EnvError(
                    f"observed {value}{self.place}; its space promises integers from {start} to "
                    f"{start + count - 1}"
                )
            out[first + int(value) - start] = 1.0

    def acted(self, columns: Vector) -> Any:
        """Return this leaf's own action from its `size` columns: one-hot, or in [-1, 1]."""
        if not self.choices:
            low, high = self.bounds
            share = columns.reshape(self.shape)
            scaled = (high + low) / 2 + (high - low) / 2 * share
            return np.clip(scaled, low, high).astype(low.dtype, copy=False)
        chosen = [
            int(columns[first : first + count].argmax()) + start
            for first, count, start in self._layout
        ]
        array = np.array(chosen, self.dtype).reshape(self.shape)
        return array if self.shape else array[()]

    def columns(self, action: Any) -> Vector:
        """Return the `size` columns that `acted` makes this action of."""
        if not self.choices:
            low, high = self.bounds
            half = (high - low) / 2
            share = np.asarray(action, low.dtype) - (high + low) / 2
            share = share / np.where(half == 0, 1, half)
            return np.clip(share, -1.0, 1.0).reshape(-1).astype(np.float32)
        out = np.zeros(self.size, np.float32)
        for value, (first, count, start) in zip(
            np.ravel(action).tolist(), self._layout, strict=True
        ):
            if not 0 <= value - start < count:
                raise EnvError(
                    f"action {value}{self.place}; choose from {start} to {start + count - 1}"
                )
            out[first + int(value) - start] = 1.0
        return out

    @cached_property
    def bounds(self) -> tuple[Vector, Vector]:
        """Lower and upper bounds of an action's numbers, in its own shape and type."""
        low, high = (
            np.array(bounds, self.dtype).reshape(self.shape) for bounds in (self.low, self.high)
        )
        return low, high

    @cached_property
    def _layout(self) -> list[tuple[int, int, int]]:
        """For each integer its first column, how many values it has, and the smallest."""
        first = itertools.accumulate(self.choices, initial=0)
        return list(zip(first, self.choices, self.start, strict=False))


@dataclass(frozen=True, kw_only=True)
class NativeSpace:
    """An agent's own observation and action, as what they hold side by side."""

    obs: tuple[SpaceLeaf, ...]
    """In the order of `gymnasium.spaces.utils.flatten`, whose result `features` returns."""
    act: tuple[SpaceLeaf, ...]
    """In that order, too; the columns of an action are theirs side by side."""

    @property
    def parts(self) -> tuple[int, ...]:
        """The parts of an action: how many choices, or 0 for a number."""
        return tuple(part for leaf in self.act for part in (leaf.choices or (0,) * leaf.size))

    def features(self, obs: Any) -> Vector:
        """Return an observation as a vector, a picture as bytes; raise `EnvError` with what was
        expected."""
        kind = np.float32 if self.obs[0].picture is None else np.uint8
        features: Vector = np.zeros(self._features[-1][1], kind)
        for leaf, (begin, end) in zip(self.obs, self._features, strict=True):
            leaf.write(obs, features[begin:end])
        return features

    def action(self, chosen: Any) -> Any:
        """Return the agent's own action from an integer from 0, or from (A,) columns or more."""
        if np.ndim(chosen) == 0:
            return chosen + self.act[0].start[0]
        given = np.asarray(chosen)
        own = [
            leaf.acted(given[begin:end])
            for leaf, (begin, end) in zip(self.act, self._columns, strict=True)
        ]
        return nested([(leaf.keys, value) for leaf, value in zip(self.act, own, strict=True)])

    def columns(self, action: Any) -> Vector:
        """Return the (A,) columns of the agent's own action."""
        return np.concatenate([leaf.columns(leaf.found_in(action)) for leaf in self.act])

    def legal(self, mask: Any) -> npt.NDArray[np.bool_]:
        """Return which (A,) columns are legal by a mask; raise `EnvError` for one that is wrong.

        A mask has one entry per choice, all in one array, or nested as the actions are, None where
        everything is legal. Numbers have no entry.
        """
        choosing = [leaf for leaf in self.act if leaf.choices]
        if not choosing:
            raise EnvError("has no choices that an action_mask could forbid; leave it out")
        if isinstance(mask, Mapping | tuple) and self.act[0].path:
            entries = np.concatenate([_own_mask(leaf, mask) for leaf in choosing])
        else:
            entries = _flat(mask)
        columns, starts = self.choice_columns, self._part_starts
        if len(entries) != len(columns) or not np.logical_or.reduceat(entries != 0, starts).all():
            counts = " + ".join(str(part) for part in self.parts if part)
            each = " in each part" if len(starts) > 1 else ""
            raise EnvError(
                f"got the action_mask {mask!r:.200}; give {counts} entries, one per choice, at "
                f"least one of them 1{each}"
            )
        legal = np.ones(self._columns[-1][1], np.bool_)
        legal[columns] = entries != 0
        return legal

    @cached_property
    def choice_columns(self) -> npt.NDArray[np.int64]:
        """The columns of an action that are choices, of which a mask tells."""
        return np.flatnonzero([kept for part in self.parts for kept in (part > 0,) * max(part, 1)])

    @cached_property
    def _part_starts(self) -> npt.NDArray[np.int64]:
        """At which of the `choice_columns` each part begins."""
        counts = [part for part in self.parts if part]
        return np.cumsum((0, *counts[:-1]))

    @cached_property
    def _features(self) -> list[tuple[int, int]]:
        """The first feature of each leaf of an observation, and the one behind its last."""
        return _spans(self.obs)

    @cached_property
    def _columns(self) -> list[tuple[int, int]]:
        """The same of the columns of an action."""
        return _spans(self.act)


def nested(leaves: Sequence[tuple[tuple[str | int, ...], Any]]) -> Any:
    """Return the nested dict or tuple of values by their keys; a value without keys by itself."""
    if not leaves[0][0]:
        return leaves[0][1]
    inner: dict[str | int, list[tuple[tuple[str | int, ...], Any]]] = {}
    for (key, *rest), value in leaves:
        inner.setdefault(key, []).append((tuple(rest), value))
    held = {key: nested(some) for key, some in inner.items()}
    return tuple(held.values()) if isinstance(leaves[0][0][0], int) else held


def _spans(leaves: Sequence[SpaceLeaf]) -> list[tuple[int, int]]:
    ends = itertools.accumulate((leaf.size for leaf in leaves), initial=0)
    return list(itertools.pairwise(ends))


def _own_mask(leaf: SpaceLeaf, mask: Any) -> Vector:
    """Return a leaf's entries of a nested mask; None allows everything."""
    own = leaf.found_in(mask)
    return np.ones(leaf.size) if own is None else _flat(own)


def _flat(mask: Any) -> Vector:
    """Return the entries of a mask, which may be a tuple of those of several integers."""
    if isinstance(mask, tuple):
        return np.concatenate([_flat(part) for part in mask])
    return np.ravel(np.asarray(mask))


def described(value: Any) -> str:
    """Return type, and shape where there is one, for a message."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} of shape {value.shape}"
    return f"a {type(value).__name__} ({value!r:.60})"
