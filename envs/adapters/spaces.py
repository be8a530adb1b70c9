"""Agents' gymnasium spaces: observations as padded arrays, actions in their own space, bounds.

Axes are those of `envs.base`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, Space

from envs.adapters.team import TeamView
from envs.base import EnvError, FloatArray

_MASK = "action_mask"
Pack = Callable[[Any, FloatArray], None]


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
        seen = [_unmasked(space) for space in obs_spaces]
        self._packs = [_packer(name, space) for name, space in zip(names, seen, strict=True)]
        self.obs_bounds = ObsBounds(names, seen)
        self.obs_sizes = tuple(_features(space) for space in seen)
        kinds = {_action_kind(n, space) for n, space in zip(names, action_spaces, strict=True)}
        if len(kinds) > 1:
            listing = ", ".join(f"{n}: {s}" for n, s in zip(names, action_spaces, strict=True))
            raise EnvError(
                f"some agents choose (Discrete), others steer (Box): {listing}; wrap the "
                "environment so that all do the same"
            )
        self.action_kind: Literal["discrete", "continuous"] = kinds.pop()
        self.action_sizes = tuple(_features(space) for space in action_spaces)
        self._actions = [_reader(agent, space) for agent, space in enumerate(action_spaces)]

    def write(self, agent: int, obs: Any, view: TeamView, over: bool) -> None:
        """Write one agent's observation, and its mask if the observation holds one.

        When the episode is over nobody acts, and a mask may be empty; it is left out.
        """
        if self.masked[agent]:
            if not isinstance(obs, Mapping) or not {"observation", _MASK} <= set(obs):
                raise EnvError(
                    f"{self._names[agent]} observed {_described(obs)}; its space promises a dict "
                    f"with 'observation' and {_MASK!r}"
                )
            if not over:
                self.write_mask(agent, obs[_MASK], view)
            obs = obs["observation"]
        self._packs[agent](obs, view.obs[agent])

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
        return self._actions[agent](actions)


def _is_masked(space: Space[Any]) -> bool:
    """Return whether observations are dicts with an observation and a mask."""
    return isinstance(space, Dict) and set(space.spaces) == {"observation", _MASK}


def _unmasked(space: Space[Any]) -> Space[Any]:
    return space["observation"] if isinstance(space, Dict) and _is_masked(space) else space


def _features(space: Space[Any]) -> int:
    """Return how many numbers an observation becomes, one-hot if Discrete, or actions there are."""
    return int(space.n) if isinstance(space, Discrete) else int(np.prod(space.shape or ()))


def _packer(name: str, space: Space[Any]) -> Pack:
    """Return what writes an observation of this space into a row of features."""
    if isinstance(space, Discrete):
        return _OneHot(name, int(space.n), int(space.start))
    if isinstance(space, Box | MultiBinary) and np.prod(space.shape) > 0:
        return _Flat(name, tuple(space.shape))
    raise EnvError(
        f"{name} observes {space}; supported are Box, Discrete, MultiBinary, and a Dict of "
        f"'observation' and {_MASK!r}; wrap the environment, e.g. with "
        "gymnasium.spaces.utils.flatten"
    )


class _Flat:
    """Writes numbers of a fixed shape in a row."""

    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        self._name, self._shape, self._size = name, shape, int(np.prod(shape))

    def __call__(self, obs: Any, row: FloatArray) -> None:
        array = np.asarray(obs)
        if array.shape != self._shape or array.dtype.kind not in "fiub":
            raise EnvError(
                f"{self._name} observed {_described(obs)}; its space promises numbers of shape "
                f"{self._shape}"
            )
        row[: self._size] = array.reshape(-1)


class _OneHot:
    """Writes a one for the number seen and zeros for the others."""

    def __init__(self, name: str, count: int, start: int) -> None:
        self._name, self._count, self._start = name, count, start

    def __call__(self, obs: Any, row: FloatArray) -> None:
        index = int(obs) - self._start
        if not 0 <= index < self._count:
            raise EnvError(
                f"{self._name} observed {obs}; its space promises integers from {self._start} to "
                f"{self._start + self._count - 1}"
            )
        row[: self._count] = 0
        row[index] = 1


def _described(value: Any) -> str:
    """Return type, and shape where there is one."""
    array = value if isinstance(value, np.ndarray) else None
    if array is None:
        return f"a {type(value).__name__} ({value!r:.60})"
    return f"{array.dtype} of shape {array.shape}"


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


def _reader(agent: int, space: Space[Any]) -> Callable[[npt.NDArray[Any]], Any]:
    """Return what finds an agent's action in the team's array."""
    if isinstance(space, Box):
        return _Steering(agent, space)
    assert isinstance(space, Discrete)
    return _Choice(agent, int(space.start))


class _Choice:
    """Counts choices from where the space starts."""

    def __init__(self, agent: int, start: int) -> None:
        self._agent, self._start = agent, start

    def __call__(self, actions: npt.NDArray[Any]) -> Any:
        return actions[self._agent] + self._start


class _Steering:
    """Scales [-1, 1] to the space's bounds."""

    def __init__(self, agent: int, space: Box) -> None:
        self._agent, self._space, self._size = agent, space, int(np.prod(space.shape))
        self._middle = (space.high + space.low) / 2
        self._half = (space.high - space.low) / 2

    def __call__(self, actions: npt.NDArray[Any]) -> Any:
        space = self._space
        share = actions[self._agent, : self._size].reshape(space.shape)
        scaled = self._middle + self._half * share
        return np.clip(scaled, space.low, space.high).astype(space.dtype, copy=False)


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
