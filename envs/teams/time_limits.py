"""Time limits: how episodes end at one, and the one that a third-party environment has itself.

Axes: E environment copies.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numpy as np

from envs.base import EnvError

_LIMITS = ("max_cycles", "max_steps", "max_episode_steps", "_max_episode_steps", "episode_limit")
_INNER = ("unwrapped", "env", "aec_env")

Ends = TypeVar("Ends")
"""(E,) booleans of NumPy, JAX or PyTorch, or one `bool`."""


def split_ends(finite_horizon: bool, task_over: Ends, out_of_time: Ends) -> tuple[Ends, Ends]:
    """Return which episodes terminated and which were truncated.

    What the task ends is terminated, in the step that reaches `EnvSpec.max_steps` too. What only
    the time ends is truncated, or terminated with `EnvSpec.finite_horizon`.
    """
    done = cast(Any, task_over) | cast(Any, out_of_time)
    terminated = done if finite_horizon else task_over
    return terminated, done ^ terminated


@dataclass(frozen=True)
class FoundLimit:
    """A time limit that an environment shows."""

    name: str
    """Of the attribute."""
    steps: int


def found_time_limit(env: Any) -> FoundLimit | None:
    """Return the time limit that an environment or what it wraps shows, or None."""
    layers, seen = [env], set()
    while layers:
        layer = layers.pop(0)
        if id(layer) in seen:
            continue
        seen.add(id(layer))
        for name in _LIMITS:
            limit = getattr(layer, name, None)
            if isinstance(limit, int | np.integer) and limit > 0 and not isinstance(limit, bool):
                return FoundLimit(name, int(limit))
        layers += [inner for name in _INNER if (inner := getattr(layer, name, None)) is not None]
    return None


def time_limit(name: str, env: Any, max_steps: int | None) -> int:
    """Return the option if given, else the limit that the environment shows."""
    own = found_time_limit(env)
    if max_steps is None:
        if own is None:
            raise EnvError(
                f"{name} shows no time limit ({', '.join(_LIMITS)}), so its episodes might never "
                "end; set `--env.options max_steps 100`, or as many as one may take"
            )
        return own.steps
    if max_steps < 1:
        raise EnvError(f"{name}: max_steps is {max_steps}; expected at least 1")
    if own is not None and own.steps < max_steps:
        raise EnvError(
            f"{name}: max_steps is {max_steps}, but the environment ends its episodes itself after "
            f"{own.steps} steps, its {own.name}, and took no other limit; set max_steps to "
            f"{own.steps} or less, or raise the limit where the environment is made"
        )
    return max_steps


def own_limit(
    call: Callable[..., Any],
    make: Callable[[dict[str, Any]], Any],
    options: dict[str, Any],
    max_steps: int | None,
) -> dict[str, Any]:
    """Return the options that make `max_steps` the environment's own limit; empty if none do.

    `call` is what takes the options, `make` calls it with them. Where it hides what it takes behind
    ``**kwargs``, the name of the limit that the environment shows is tried.
    """
    if max_steps is None:
        return {}
    parameters = inspect.signature(call).parameters
    taken = [name for name in _LIMITS if name in parameters]
    hides = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    if hides and not taken:
        taken = _tried(make, options, max_steps)
    return {name: max_steps for name in taken if name not in options}


def _tried(
    make: Callable[[dict[str, Any]], Any], options: dict[str, Any], max_steps: int
) -> list[str]:
    """Return the name of the limit that an environment shows, if it is an option too."""
    env = make(options)
    shown = found_time_limit(env)
    env.close()
    name = shown.name.removeprefix("_") if shown else ""
    if not name or name in options:
        return []
    try:
        make(options | {name: max_steps}).close()
    except EnvError:
        return []
    return [name]
