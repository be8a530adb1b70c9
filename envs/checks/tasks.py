"""What a task's functions of arrays can return wrong, said with their file and line.

Axes: E environment copies, C the copies a call is about.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from envs.base import BoolArray, EnvError, EnvSpec, FloatArray
from envs.user_code import source_of

_Arrays = dict[str, npt.NDArray[Any]]

_FUNCTIONS = {
    "begin": "begin(self, draws)",
    "view": "view(self, arrays, steps)",
    "advance": "advance(self, arrays, steps, actions)",
}
"""What every task has, besides `num_draws`."""


def check_task(spec: EnvSpec, task: Any) -> None:
    """Raise if a task lacks a part."""
    lacking = [
        signature
        for name, signature in _FUNCTIONS.items()
        if not callable(getattr(task, name, None))
    ]
    if not isinstance(getattr(task, "num_draws", None), int | np.integer):
        lacking.append("num_draws, the random numbers that an episode needs")
    if lacking:
        raise EnvError(
            f"{spec.name}: the task {source_of(type(task))} lacks {', '.join(lacking)}; "
            f"a task has num_draws, {', '.join(_FUNCTIONS.values())}"
        )


def check_arrays(spec: EnvSpec, task: Any, arrays: Any, num_copies: int) -> None:
    """Raise unless `begin` returned a dict of arrays whose first axis is the copies."""
    if not isinstance(arrays, dict):
        raise _returned(spec, task.begin, f"{_kind(arrays)}; return a dict of numpy arrays by name")
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray) or array.shape[:1] != (num_copies,):
            raise _returned(
                spec,
                task.begin,
                f"{name!r} as {_kind(array)}; return a numpy array whose first axis is the "
                f"{num_copies} copies that begin, or keep what never changes on self",
            )


def checked_advance(
    spec: EnvSpec, task: Any, arrays: _Arrays, answer: Any
) -> tuple[_Arrays, FloatArray, BoolArray]:
    """Return what `advance` returned if it is arrays as they were, rewards and ends."""
    if not isinstance(answer, tuple) or len(answer) != 3 or not isinstance(answer[0], dict):
        raise _returned(
            spec,
            task.advance,
            f"{_kind(answer)}; return (arrays, rewards, terminated): a dict of the arrays one "
            "step later, a number and a bool for every copy",
        )
    after, rewards, ended = answer
    if after.keys() != arrays.keys():
        raise _returned(
            spec,
            task.advance,
            f"the arrays {', '.join(after)}; return those that begin makes: {', '.join(arrays)}",
        )
    for name, array in after.items():
        if not isinstance(array, np.ndarray) or array.shape != arrays[name].shape:
            raise _returned(
                spec,
                task.advance,
                f"{name!r} as {_kind(array)}; begin made {_kind(arrays[name])}",
            )
    shape = (spec.num_envs,)
    for what, array, kinds, wanted in (
        ("rewards", rewards, "fiub", "numbers"),
        ("terminated", ended, "b", "bool"),
    ):
        fits = isinstance(array, np.ndarray) and array.shape == shape
        if not fits or array.dtype.kind not in kinds:
            raise _returned(
                spec,
                task.advance,
                f"{what} as {_kind(array)}; return {wanted} of shape {shape}, one for every copy",
            )
    return after, rewards, ended


def _returned(spec: EnvSpec, function: Any, what: str) -> EnvError:
    """Return the error that a function of a task returned `what`."""
    return EnvError(f"{spec.name}: {source_of(function)} returned {what}")


def _kind(thing: Any) -> str:
    """Return what something is, for a message."""
    if isinstance(thing, np.ndarray):
        return f"{thing.dtype} of shape {thing.shape}"
    return f"a {type(thing).__name__}" + (f" of {len(thing)}" if isinstance(thing, tuple) else "")
