"""Agents' gymnasium spaces: observations as padded arrays, actions in their own space, bounds.

An observation becomes the vector that `gymnasium.spaces.utils.flatten` makes of it: integers are
one-hot, arrays are flattened, what a Dict or a Tuple holds stands side by side in its order. So are
actions, unless all agents choose among integers or all give numbers; those lie in [-1, 1].

Axes are those of `envs.base`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Space, Tuple

from envs.adapters.team import TeamView
from envs.base import ActionKind, EnvError, FloatArray
from envs.native import NativeSpace, Picture, SpaceLeaf, described

_MASK = "action_mask"
_MAX_CHANNELS, _LEAST_SIDE = 16, 8
"""Of what is taken for a picture."""
_UNBOUNDED = 1e30
"""What is larger is no bound."""


class AgentSpaces:
    """Writes what each agent observes into a `TeamView` and reads its action from an array."""

    def __init__(
        self,
        names: Sequence[str],
        obs_spaces: Sequence[Space[Any]],
        action_spaces: Sequence[Space[Any]],
        action_limit: float | None = None,
        shrink: int = 1,
        grey: bool = False,
    ) -> None:
        """`action_limit` is how far numbers of actions without a bound may go; see `bounded`.

        `shrink` and `grey` say how pictures are read; see `envs.native.Picture`.
        """
        self._names = names
        self.masked = [_is_masked(space) for space in obs_spaces]
        """Per agent, whether its observation is a dict that holds an action mask."""
        leaves = [observed(name, space) for name, space in zip(names, obs_spaces, strict=True)]
        pictures = pictures_of(obs_spaces, shrink, grey)
        self.obs_image: tuple[int, ...] = () if pictures is None else pictures[0].reduced
        """See `EnvSpec.obs_image`."""
        self.obs_bounds: ObsBounds | None = None
        """None of pictures, whose bytes cannot leave theirs."""
        if pictures is None:
            self.obs_bounds = ObsBounds(names, obs_spaces)
        else:
            leaves = [
                (replace(leaf, picture=p),) for (leaf,), p in zip(leaves, pictures, strict=True)
            ]
        self.native = tuple(
            NativeSpace(obs=seen, act=acted(name, space, action_limit))
            for name, seen, space in zip(names, leaves, action_spaces, strict=True)
        )
        """The agents' own spaces, for `EnvSpec`."""
        self.obs_sizes = tuple(sum(leaf.size for leaf in own.obs) for own in self.native)
        self.action_sizes = tuple(sum(leaf.size for leaf in own.act) for own in self.native)
        self.action_kind: ActionKind = "composite"
        if all(isinstance(space, Discrete) for space in action_spaces):
            self.action_kind = "discrete"
        elif not any(part for own in self.native for part in own.parts):
            self.action_kind = "continuous"
        composite = self.action_kind == "composite"
        self.action_parts = tuple(own.parts for own in self.native) if composite else ()

    def write(self, agent: int, obs: Any, view: TeamView, over: bool) -> None:
        """Write one agent's observation, and its mask if the observation holds one.

        When the episode is over no agent acts, and a mask may be empty; it is left out.
        """
        if self.masked[agent] and not over:
            if not isinstance(obs, Mapping) or _MASK not in obs:
                raise EnvError(
                    f"{self._names[agent]} observed {described(obs)}; its space promises a dict "
                    f"that holds {_MASK!r}"
                )
            self.write_mask(agent, obs[_MASK], view)
        try:
            features = self.native[agent].features(obs)
        except EnvError as error:
            raise EnvError(f"{self._names[agent]} {error}") from None
        view.obs[agent, : len(features)] = features

    def write_mask(self, agent: int, mask: Any, view: TeamView) -> None:
        """Write one agent's action mask."""
        try:
            legal = self.native[agent].legal(mask)
        except EnvError as error:
            raise EnvError(f"{self._names[agent]} {error}") from None
        view.action_mask[agent, : len(legal)] = legal

    def write_absent(self, agent: int, view: TeamView) -> None:
        """Write what an agent that takes no part sees and may do: nothing, and anything."""
        view.obs[agent] = 0
        view.action_mask[agent, : self.action_sizes[agent]] = True

    def action(self, agent: int, actions: npt.NDArray[Any]) -> Any:
        """Return one agent's action, in its own space, out of the (N,) or (N, A) array."""
        return self.native[agent].action(actions[agent])


def leaf_spaces(space: Space[Any], path: tuple[str, ...] = ()) -> list[tuple[Any, Space[Any]]]:
    """Return path and space of what a space holds, in the order of gymnasium's `flatten`.

    A mask of the agent's actions is no part of what it observes, and left out.
    """
    if isinstance(space, Dict):
        inner = [(f".{key}", held) for key, held in space.spaces.items()]
        inner = inner if path else [(step, held) for step, held in inner if step != f".{_MASK}"]
    elif isinstance(space, Tuple):
        inner = [(f"[{index}]", held) for index, held in enumerate(space.spaces)]
    else:
        return [(path, space)]
    return [leaf for step, held in inner for leaf in leaf_spaces(held, (*path, step))]


def picture_of(shape: tuple[int, ...], dtype: object, shrink: int, grey: bool) -> Picture | None:
    """Return how arrays of such a shape and type are read as pictures; None: they are none.

    Pictures are bytes in two axes, or in three of which the last or the first are 1 to 16
    channels, with at least 8 pixels on each side.
    """
    if dtype != np.uint8 or len(shape) not in (2, 3):
        return None
    if shrink < 1:
        raise EnvError(f"shrink is {shrink}; give the side of a square of pixels, at least 1")
    narrow = shape[0] < _LEAST_SIDE or shape[-1] > _MAX_CHANNELS >= shape[0]
    first = len(shape) == 3 and narrow
    sides = shape[1:] if first else shape[:2]
    channels = 0 if len(shape) == 2 else shape[0] if first else shape[2]
    if min(sides) < _LEAST_SIDE or channels > _MAX_CHANNELS:
        return None
    if min(sides) < shrink:
        raise EnvError(f"shrink is {shrink}, and pictures have {sides[0]} x {sides[1]} pixels")
    return Picture(
        height=sides[0],
        width=sides[1],
        channels=channels,
        channels_first=first,
        shrink=shrink,
        grey=grey,
    )


def pictures_of(spaces: Sequence[Space[Any]], shrink: int, grey: bool) -> list[Picture] | None:
    """Return how each agent's observation is read as a picture.

    None unless every agent observes one picture, all of one size, whose values may reach 255.
    """
    pictures = []
    for space in spaces:
        held = [inner for _, inner in leaf_spaces(space)]
        if len(held) == 1 and isinstance(held[0], Box) and (held[0].high == 255).all():
            picture = picture_of(held[0].shape, held[0].dtype, shrink, grey)
            if picture is not None:
                pictures.append(picture)
    if len(pictures) == len(spaces) and len({picture.reduced for picture in pictures}) == 1:
        return pictures
    if shrink != 1 or grey:
        raise EnvError(
            f"shrink and grey are for teams in which every agent observes one picture, all of one "
            f"size; here they observe {', '.join(dict.fromkeys(map(str, spaces)))}; leave them out"
        )
    return None


def space_leaf(path: tuple[str, ...], space: Space[Any]) -> SpaceLeaf | None:
    """Return a leaf of an agent's space, or None if it is of no kind that is supported."""
    if isinstance(space, Discrete):
        return SpaceLeaf(path=path, choices=(int(space.n),), start=(int(space.start),))
    shape = tuple(map(int, space.shape or ()))
    if isinstance(space, MultiDiscrete) and space.nvec.size:
        counts, starts = (tuple(a.ravel().tolist()) for a in (space.nvec, space.start))
        return SpaceLeaf(path=path, shape=shape, choices=counts, start=starts)
    if isinstance(space, Box | MultiBinary) and np.prod(shape) > 0:
        return SpaceLeaf(path=path, shape=shape)
    return None


def observed(name: str, space: Space[Any]) -> tuple[SpaceLeaf, ...]:
    """Return what an agent observes, or raise on a space that is not supported."""
    found = [space_leaf(path, held) for path, held in leaf_spaces(space)]
    leaves = tuple(leaf for leaf in found if leaf is not None)
    if not leaves or len(leaves) < len(found):
        raise EnvError(
            f"{name} observes {space}; supported are Box, Discrete, MultiDiscrete, MultiBinary, "
            "and Dict and Tuple of these; wrap the environment so that it shows arrays of one size"
        )
    return leaves


def gym_space(leaves: Sequence[SpaceLeaf]) -> Space[Any]:
    """Return the gymnasium space of actions with these leaves."""
    return _gym_space([(leaf.keys, _leaf_space(leaf)) for leaf in leaves])


def _gym_space(held: Sequence[tuple[tuple[str | int, ...], Space[Any]]]) -> Space[Any]:
    """Return the space that holds others by their keys; one without keys itself."""
    if not held[0][0]:
        return held[0][1]
    inner: dict[str | int, list[tuple[tuple[str | int, ...], Space[Any]]]] = {}
    for (key, *rest), space in held:
        inner.setdefault(key, []).append((tuple(rest), space))
    spaces = {key: _gym_space(some) for key, some in inner.items()}
    if 0 in spaces:
        return Tuple(list(spaces.values()))
    return Dict({str(key): space for key, space in spaces.items()})


def _leaf_space(leaf: SpaceLeaf) -> Space[Any]:
    """Return the gymnasium space of one array of actions."""
    if not leaf.choices:
        return Box(*leaf.bounds, dtype=np.dtype(leaf.dtype).type)
    if not leaf.shape:
        return Discrete(leaf.choices[0], start=leaf.start[0])
    counts, starts = (np.reshape(each, leaf.shape) for each in (leaf.choices, leaf.start))
    return MultiDiscrete(counts, np.dtype(leaf.dtype).type, start=starts)


def _is_masked(space: Space[Any]) -> bool:
    """Return whether observations are dicts that hold a mask."""
    return isinstance(space, Dict) and _MASK in space.spaces


def acted(name: str, space: Space[Any], limit: float | None) -> tuple[SpaceLeaf, ...]:
    """Return how an agent acts, or raise on a space that is not supported."""
    found = [_act_leaf(name, path, held, limit) for path, held in leaf_spaces(space)]
    leaves = tuple(leaf for leaf in found if leaf is not None)
    if not leaves or len(leaves) < len(found):
        raise EnvError(
            f"{name} acts in {space}; supported are Discrete, MultiDiscrete, MultiBinary, Box of "
            "floats, and Dict and Tuple of these; wrap the environment, e.g. with a Discrete for "
            "each integer"
        )
    return leaves


def _act_leaf(
    name: str, path: tuple[str, ...], space: Space[Any], limit: float | None
) -> SpaceLeaf | None:
    """Return one array of an agent's action, or None if it is of no kind that is supported."""
    shape = tuple(map(int, space.shape or ()))
    if isinstance(space, MultiBinary) and np.prod(shape) > 0:
        count = int(np.prod(shape))
        twos, zeros = (2,) * count, (0,) * count
        return SpaceLeaf(path=path, shape=shape, choices=twos, start=zeros, dtype="int8")
    leaf = space_leaf(path, space)
    if leaf is None or isinstance(space, Discrete | MultiDiscrete):
        return None if leaf is None else replace(leaf, dtype=str(space.dtype))
    if not isinstance(space, Box) or space.dtype is None or space.dtype.kind != "f":
        return None
    low, high = (tuple(bound.ravel().tolist()) for bound in bounded(name, space, limit))
    return replace(leaf, low=low, high=high, dtype=str(space.dtype))


def bounded(
    name: str, space: Box, limit: float | None
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return lower and upper bounds of a Box of actions, to which [-1, 1] is scaled.

    Where it has none, they are -`limit` and `limit`; beside a single bound, twice the limit away.
    """
    has_low, has_high = (np.abs(bound) < _UNBOUNDED for bound in (space.low, space.high))
    if has_low.all() and has_high.all():
        return space.low, space.high
    if limit is None:
        raise EnvError(
            f"{name} acts in {space}, which has no bounds to scale [-1, 1] to; give the Box finite "
            "low and high, or say how far to go: `--env.options action_limit 1`"
        )
    if not 0.0 < limit < _UNBOUNDED:
        raise EnvError(f"{name}: action_limit is {limit!r}; give a number above 0")
    low = np.where(has_low, space.low, np.where(has_high, space.high - 2 * limit, -limit))
    high = np.where(has_high, space.high, np.where(has_low, space.low + 2 * limit, limit))
    return low.astype(space.dtype), high.astype(space.dtype)


class ObsBoundsWarning(UserWarning):
    """An agent observed what its space rules out; training goes on, `check_env` counts a fault."""


class ObsBounds:
    """The bounds of a team's observations, widened by what rounding may do to them."""

    def __init__(self, names: Sequence[str], spaces: Sequence[Space[Any]]) -> None:
        """`names` are the agents', for messages."""
        self._names = names
        self._leaves = [observed(name, space) for name, space in zip(names, spaces, strict=True)]
        width = max(sum(leaf.size for leaf in leaves) for leaves in self._leaves)
        self._low = np.full((len(spaces), width), -np.inf)
        self._high = np.full((len(spaces), width), np.inf)
        for agent, space in enumerate(spaces):
            end = 0
            for leaf, (_, held) in zip(self._leaves[agent], leaf_spaces(space), strict=True):
                begin, end = end, end + leaf.size
                if isinstance(held, Box):
                    self._low[agent, begin:end] = held.low.reshape(-1)
                    self._high[agent, begin:end] = held.high.reshape(-1)
                elif isinstance(held, MultiBinary):
                    self._low[agent, begin:end], self._high[agent, begin:end] = 0.0, 1.0
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
        value, low, high = (a[agent, feature] for a in (seen[copy], self._low, self._high))
        return (
            f"{self._names[agent]} observed {value:g} at {self._place(agent, feature)} (copy "
            f"{copy}); its space promises {low:g} to {high:g}; correct the space, or scale or clip "
            "what is observed"
        )

    def _place(self, agent: int, feature: int) -> str:
        """Return where a feature stands in an agent's own observation."""
        end = 0
        for leaf in self._leaves[agent]:
            begin, end = end, end + leaf.size
            if feature < end:
                break
        index = [int(i) for i in np.unravel_index(feature - begin, leaf.shape)]
        return "".join(leaf.path) + str(index)


@runtime_checkable
class BoundedTeam(Protocol):
    """A `Team` whose observation spaces have bounds."""

    @property
    def obs_bounds(self) -> ObsBounds | None:
        """The bounds; None where there is nothing to look at."""
        ...


def _rounding(bounds: FloatArray) -> FloatArray:
    """Return how far float32 arithmetic may pass bounds; the infinite ones stay."""
    return 1e-5 * np.maximum(1.0, np.abs(np.where(np.isfinite(bounds), bounds, 0.0)))
