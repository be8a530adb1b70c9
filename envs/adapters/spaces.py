"""Agents' gymnasium spaces: observations as padded arrays, actions in their own space, bounds.

An observation becomes the vector that `gymnasium.spaces.utils.flatten` makes of it: integers are
one-hot, arrays are flattened, what a Dict or a Tuple holds stands side by side in its order.

Axes are those of `envs.base`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Space, Tuple

from envs.adapters.team import TeamView
from envs.base import EnvError, FloatArray, NativeSpace, SpaceLeaf, described

_MASK = "action_mask"


class AgentSpaces:
    """Writes what each agent observes into a `TeamView` and reads its action from an array."""

    def __init__(
        self,
        names: Sequence[str],
        obs_spaces: Sequence[Space[Any]],
        action_spaces: Sequence[Space[Any]],
    ) -> None:
        self._names = names
        self.masked = [_is_masked(space) for space in obs_spaces]
        """Per agent, whether its observation is a dict that holds an action mask."""
        seen = [observed(*pair) for pair in zip(names, obs_spaces, strict=True)]
        self.obs_bounds = ObsBounds(names, obs_spaces)
        self.obs_sizes = tuple(sum(leaf.size for leaf in leaves) for leaves in seen)
        kinds = {_action_kind(n, space) for n, space in zip(names, action_spaces, strict=True)}
        if len(kinds) > 1:
            listing = ", ".join(f"{n}: {s}" for n, s in zip(names, action_spaces, strict=True))
            raise EnvError(
                f"some agents choose (Discrete), others steer (Box): {listing}; wrap the "
                "environment so that all do the same"
            )
        self.action_kind: Literal["discrete", "continuous"] = kinds.pop()
        self.action_sizes = tuple(_features(space) for space in action_spaces)
        self.native = tuple(map(_native, seen, action_spaces))
        """The agents' own spaces, for `EnvSpec`."""

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
        given, size = np.asarray(mask), self.action_sizes[agent]
        if given.shape != (size,) or not given.any():
            raise EnvError(
                f"{self._names[agent]} got the {_MASK} {mask!r}; give {size} entries, one per "
                "choice, at least one of them 1"
            )
        view.action_mask[agent, :size] = given

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


def _is_masked(space: Space[Any]) -> bool:
    """Return whether observations are dicts that hold a mask."""
    return isinstance(space, Dict) and _MASK in space.spaces


def _features(space: Space[Any]) -> int:
    """Return how many choices or numbers an action is."""
    return int(space.n) if isinstance(space, Discrete) else int(np.prod(space.shape or ()))


def _native(leaves: tuple[SpaceLeaf, ...], action_space: Space[Any]) -> NativeSpace:
    """Return both spaces of an agent as plain numbers."""
    if isinstance(action_space, Discrete):
        return NativeSpace(obs=leaves, action_start=int(action_space.start))
    assert isinstance(action_space, Box)
    return NativeSpace(
        obs=leaves,
        action_shape=tuple(map(int, action_space.shape)),
        action_low=tuple(action_space.low.ravel().tolist()),
        action_high=tuple(action_space.high.ravel().tolist()),
        action_dtype=str(action_space.dtype),
    )


def _action_kind(name: str, space: Space[Any]) -> Literal["discrete", "continuous"]:
    """Return how an agent acts, or raise on a space that we do not speak."""
    if isinstance(space, Discrete):
        return "discrete"
    if isinstance(space, Box) and space.dtype is not None and space.dtype.kind == "f":
        if space.is_bounded("both"):
            return "continuous"
        raise EnvError(
            f"{name} acts in {space}, which has no bounds to scale [-1, 1] to; give the Box "
            "finite low and high"
        )
    raise EnvError(
        f"{name} acts in {space}; supported are Discrete and Box of floats; wrap the environment, "
        "e.g. with one Discrete that counts the combinations"
    )


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
    def obs_bounds(self) -> ObsBounds:
        """The bounds."""
        ...


def _rounding(bounds: FloatArray) -> FloatArray:
    """Return how far float32 arithmetic may pass bounds; the infinite ones stay."""
    return 1e-5 * np.maximum(1.0, np.abs(np.where(np.isfinite(bounds), bounds, 0.0)))
