"""What is kept of an environment that was played, to compare one run with another.

Axes are those of `envs.base`.
"""

import zlib
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from envs.base import EnvStep

Actions = npt.NDArray[Any]

Digests = dict[str, int]
"""Of every array of a step, a checksum; pictures of whole runs would not fit into memory."""


@dataclass(frozen=True, kw_only=True)
class PlayedStep:
    """What is kept of a step."""

    digests: Digests
    rewards: npt.NDArray[Any]
    terminated: npt.NDArray[Any]
    truncated: npt.NDArray[Any]
    lacks_final_alive: bool
    is_final: dict[str, npt.NDArray[np.bool_]]
    """(E,) for ``obs`` and ``state``: whether they equal ``final_obs`` and ``final_state``."""


@dataclass(frozen=True, kw_only=True)
class Played:
    """One run from a reset."""

    first: EnvStep
    actions: list[Actions]
    steps: list[PlayedStep]
    hidden: list[npt.NDArray[Any]]
    """(E,) hidden rewards per step; empty if the environment has none."""


def copied(step: EnvStep) -> EnvStep:
    """Return the step with arrays of its own, since the next call may reuse them."""
    arrays: dict[str, Any] = {}
    for field in fields(EnvStep):
        array = getattr(step, field.name)
        arrays[field.name] = array.copy() if isinstance(array, np.ndarray) else array
    return EnvStep(**arrays)


def kept(step: EnvStep) -> PlayedStep:
    """Return what is kept of a step, whose arrays the next call may reuse."""
    return PlayedStep(
        digests=digests(step),
        rewards=step.rewards.copy(),
        terminated=step.terminated.copy(),
        truncated=step.truncated.copy(),
        lacks_final_alive=step.alive is not None and step.final_alive is None,
        is_final={
            name: (now == final).reshape(len(now), -1).all(axis=1)
            for name, now, final in (
                ("obs", step.obs, step.final_obs),
                ("state", step.state, step.final_state),
            )
        },
    )


def digests(step: EnvStep) -> Digests:
    """Return a checksum of every array that is given; 0.0 and -0.0 count as different."""
    digests: Digests = {}
    for field in fields(EnvStep):
        array = getattr(step, field.name)
        if array is not None:
            digests[field.name] = 0
            for row in array:  # one environment's, which is in one piece
                digests[field.name] = zlib.crc32(
                    np.ascontiguousarray(row).data, digests[field.name]
                )
    return digests


def difference(step: Digests, other: Digests) -> str | None:
    """Return the first field in which two steps differ, or None."""
    names = [field.name for field in fields(EnvStep)]
    return next((name for name in names if step.get(name) != other.get(name)), None)
