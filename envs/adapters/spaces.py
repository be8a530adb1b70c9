"""Agents' gymnasium spaces: observations as padded arrays, actions in their own space, bounds.

Axes are those of `envs.base`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, Space

from envs.adapters.team import TeamView
from envs.base import EnvError, FloatArray, NativeSpace, described

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
        seen = [_unmasked(space) for space in obs_spaces]
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
        self.native = tuple(map(_native, names, seen, action_spaces))
        """The agents' own spaces, for `EnvSpec`."""

    def write(self, agent: int, obs: Any, view: TeamView, over: bool) -> None:
        """Write one agent's observation, and its mask if the observation holds one.

        When the episode is over no agent acts, and a mask may be empty; it is left out.
        """
        if self.masked[agent]:
            if not isinstance(obs, Mapping) or not {"observation", _MASK} <= set(obs):
                raise EnvError(
                    f"{self._names[agent]} observed {described(obs)}; its space promises a dict "
                    f"with 'observation' and {_MASK!r}"
                )
            if not over:
                self.write_mask(agent, obs[_MASK], view)
            obs = obs["observation"]
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


def _is_masked(space: Space[Any]) -> bool:
    """Return whether observations are dicts with an observation and a mask."""
    return isinstance(space, Dict) and set(space.spaces) == {"observation", _MASK}


def _unmasked(space: Space[Any]) -> Space[Any]:
    return space["observation"] if isinstance(space, Dict) and _is_masked(space) else space


def _features(space: Space[Any]) -> int:
    """Return how many numbers an observation becomes, one-hot if Discrete, or actions there are."""
    return int(space.n) if isinstance(space, Discrete) else int(np.prod(space.shape or ()))


def _native(name: str, obs_space: Space[Any], action_space: Space[Any]) -> NativeSpace:
    """Return both spaces of an agent as plain numbers, or raise on one that is not supported."""
    values: dict[str, Any] = {}
    if isinstance(obs_space, Discrete):
        values |= {"obs_choices": int(obs_space.n), "obs_start": int(obs_space.start)}
    elif isinstance(obs_space, Box | MultiBinary) and np.prod(obs_space.shape) > 0:
        values["obs_shape"] = tuple(map(int, obs_space.shape))
    else:
        raise EnvError(
            f"{name} observes {obs_space}; supported are Box, Discrete, MultiBinary, and a Dict of "
            f"'observation' and {_MASK!r}; wrap the environment, e.g. with "
            "gymnasium.spaces.utils.flatten"
        )
    if isinstance(action_space, Discrete):
        return NativeSpace(**values, action_start=int(action_space.start))
    assert isinstance(action_space, Box)
    return NativeSpace(
        **values,
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
