"""Environments written as a few functions of arrays: episodes, seeds and resets are kept here.

Axes are those of `envs.base`; D: random draws that an episode needs.
"""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from envs.base import BoolArray, EnvError, EnvSpec, EnvStep, FloatArray, check_num_envs, split_ends
from envs.frames import Frame
from envs.plugins import explained, source_of
from envs.rng import env_seeds, uniform
from envs.validation import checked_actions

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class View:
    """What the agents, the team and the masks show of some environments."""

    obs: FloatArray
    """(C, N, O) float32."""
    state: FloatArray
    """(C, S) float32."""
    action_mask: BoolArray | None = None
    """(C, N, A) True where an action is legal."""
    alive: BoolArray | None = None
    """(C, N) True while the agent takes part."""


class Task(Protocol):
    """One task as functions of named arrays whose first axis is the environments."""

    @property
    def num_draws(self) -> int:
        """D, the uniform numbers that one episode consumes."""
        ...

    def begin(self, draws: FloatArray) -> Arrays:
        """Return the arrays of new episodes from (C, D) numbers in [0, 1)."""
        ...

    def view(self, arrays: Arrays, steps: npt.NDArray[np.int64]) -> View:
        """Return what is seen after (C,) `steps` of the episode."""
        ...

    def advance(
        self, arrays: Arrays, steps: npt.NDArray[np.int64], actions: npt.NDArray[Any]
    ) -> tuple[Arrays, FloatArray, BoolArray]:
        """Return the arrays one step later, the (C,) dense rewards, and which tasks ended."""
        ...


@runtime_checkable
class TellsFacts(Protocol):
    """A task that tells the facts its `EnvSpec.facts` lists."""

    def facts(self, arrays: Arrays) -> FloatArray:
        """Return (C, F) numbers about the episodes so far."""
        ...


@runtime_checkable
class DrawnTask(Task, Protocol):
    """A task that can be seen."""

    def frame(self, arrays: Arrays, index: int) -> Frame:
        """Return what one environment looks like."""
        ...


_FUNCTIONS = {
    "begin": "begin(self, draws)",
    "view": "view(self, arrays, steps)",
    "advance": "advance(self, arrays, steps, actions)",
}
"""What every task has, besides `num_draws`."""


class SimulatedEnv:
    """A `VecEnv` that runs a `Task`, pays its rewards every step and has an exact state."""

    def __init__(self, spec: EnvSpec, task: Task) -> None:
        if spec.num_envs < 1:
            raise EnvError(f"{spec.name}: num_envs is {spec.num_envs}; ask for at least 1")
        _check_task(spec, task)
        self._spec = spec
        self._task = task
        self._teller = task if isinstance(task, TellsFacts) else None
        self._arrays: Arrays | None = None
        self._mask: BoolArray | None = None
        self._seeds = np.zeros(spec.num_envs, np.uint64)
        self._episodes = np.zeros(spec.num_envs, np.int64)
        self._steps = np.zeros(spec.num_envs, np.int64)

    @property
    def spec(self) -> EnvSpec:
        """The constants of this environment."""
        return self._spec

    @property
    def source(self) -> Task:
        """The task, for messages."""
        return self._task

    def reset(self, seed: int) -> EnvStep:
        """Return the start of a new episode in every environment."""
        num_envs = self._spec.num_envs
        self._seeds = env_seeds(seed, num_envs)
        self._episodes = np.zeros(num_envs, np.int64)
        self._steps = np.zeros(num_envs, np.int64)
        self._arrays = self._begin(np.arange(num_envs))
        view = self._view(self._arrays, self._steps)
        self._mask = view.action_mask
        return EnvStep.first(**vars(view), facts=self._facts(self._arrays))

    def step(self, actions: npt.NDArray[Any]) -> EnvStep:
        """Return what the joint actions led to; environments that ended show their next episode."""
        if self._arrays is None:
            raise EnvError(f"{self._spec.name}: step before reset; call reset(seed) first")
        checked = checked_actions(self._spec, self._mask, actions)
        with explained(f"{self._spec.name}: advance"):
            answer = self._task.advance(self._arrays, self._steps, checked)
        after, rewards, ended = _checked_advance(self._spec, self._task, self._arrays, answer)
        self._arrays = after
        self._steps = self._steps + 1

        out_of_time = self._steps >= self._spec.max_steps
        terminated, truncated = split_ends(self._spec.finite_horizon, ended, out_of_time)
        done = terminated | truncated

        final = self._view(self._arrays, self._steps)
        facts = self._facts(self._arrays)
        view = self._restarted(final, np.flatnonzero(done)) if done.any() else final
        self._mask = view.action_mask
        return EnvStep(
            **vars(view),
            rewards=np.asarray(rewards, np.float64),
            terminated=terminated,
            truncated=truncated,
            final_obs=final.obs,
            final_state=final.state,
            final_alive=final.alive,
            facts=facts,
        )

    def frame(self, index: int) -> Frame | None:
        """Return what an environment looks like now; None where the task draws nothing."""
        if self._arrays is None:
            raise EnvError(f"{self._spec.name}: frame before reset; call reset(seed) first")
        if not isinstance(self._task, DrawnTask):
            return None
        return self._task.frame(self._arrays, index)

    def state_dict(self) -> dict[str, Any]:
        """Return copies of everything that changes."""
        if self._arrays is None:
            raise EnvError(f"{self._spec.name}: state_dict before reset; call reset(seed) first")
        return {
            "seeds": self._seeds.copy(),
            "episodes": self._episodes.copy(),
            "steps": self._steps.copy(),
            "arrays": {name: array.copy() for name, array in self._arrays.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly from `state_dict()` of an environment made with the same options."""
        check_num_envs(self._spec, len(state["seeds"]))
        self._seeds = state["seeds"].copy()
        self._episodes = state["episodes"].copy()
        self._steps = state["steps"].copy()
        self._arrays = {name: array.copy() for name, array in state["arrays"].items()}
        self._mask = self._view(self._arrays, self._steps).action_mask

    def _facts(self, arrays: Arrays) -> FloatArray | None:
        """Return (E, F) facts, or None where the task tells none."""
        if self._teller is None:
            return None
        with explained(f"{self._spec.name}: facts"):
            return self._teller.facts(arrays).astype(np.float32)

    def _view(self, arrays: Arrays, steps: npt.NDArray[np.int64]) -> View:
        """Return what the task shows of some environments."""
        with explained(f"{self._spec.name}: view"):
            view = self._task.view(arrays, steps)
        if not isinstance(view, View):
            raise EnvError(
                f"{self._spec.name}: view returned a {type(view).__name__}; return "
                f"envs.View(obs=..., state=...): {source_of(self._task.view)}"
            )
        return view

    def _begin(self, rows: npt.NDArray[np.int64]) -> Arrays:
        """Return the arrays of new episodes in the environments `rows`."""
        draws = uniform(self._seeds[rows], self._episodes[rows], self._task.num_draws)
        with explained(f"{self._spec.name}: begin"):
            arrays = self._task.begin(draws)
        _check_arrays(self._spec, self._task, arrays, len(rows))
        return arrays

    def _restarted(self, final: View, rows: npt.NDArray[np.int64]) -> View:
        """Start new episodes in `rows` and return `final` with their first view in its place."""
        assert self._arrays is not None
        self._episodes[rows] += 1
        self._steps[rows] = 0
        fresh = self._begin(rows)
        for name, array in fresh.items():
            self._arrays[name] = _replaced(self._arrays[name], rows, array)
        first = self._view(fresh, self._steps[rows])
        return View(
            obs=_replaced(final.obs, rows, first.obs),
            state=_replaced(final.state, rows, first.state),
            action_mask=_replaced_mask(final.action_mask, rows, first.action_mask),
            alive=_replaced_mask(final.alive, rows, first.alive),
        )


def _replaced(
    old: npt.NDArray[Any], rows: npt.NDArray[np.int64], new: npt.NDArray[Any]
) -> npt.NDArray[Any]:
    """Return a copy of `old` with `new` in its `rows`."""
    if len(rows) == len(old):
        return new
    merged = old.copy()
    merged[rows] = new
    return merged


def _replaced_mask(
    old: BoolArray | None, rows: npt.NDArray[np.int64], new: BoolArray | None
) -> BoolArray | None:
    """Return `_replaced` masks, or None where the task has none."""
    return None if old is None or new is None else _replaced(old, rows, new)


def _check_task(spec: EnvSpec, task: Any) -> None:
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


def _check_arrays(spec: EnvSpec, task: Any, arrays: Any, count: int) -> None:
    """Raise unless `begin` returned a dict of arrays whose first axis is the environments."""
    if not isinstance(arrays, dict):
        raise _returned_error(
            spec, task.begin, f"{_kind(arrays)}; return a dict of numpy arrays by name"
        )
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray) or array.shape[:1] != (count,):
            raise _returned_error(
                spec,
                task.begin,
                f"{name!r} as {_kind(array)}; return a numpy array whose first axis is the "
                f"{count} environments that begin, or keep what never changes on self",
            )


def _checked_advance(
    spec: EnvSpec, task: Any, arrays: Arrays, answer: Any
) -> tuple[Arrays, FloatArray, BoolArray]:
    """Return what `advance` returned if it is arrays as they were, rewards and ends."""
    if not isinstance(answer, tuple) or len(answer) != 3 or not isinstance(answer[0], dict):
        raise _returned_error(
            spec,
            task.advance,
            f"{_kind(answer)}; return (arrays, rewards, terminated): a dict of the arrays one "
            "step later, a number and a bool for every environment",
        )
    after, rewards, ended = answer
    if after.keys() != arrays.keys():
        raise _returned_error(
            spec,
            task.advance,
            f"the arrays {', '.join(after)}; return those that begin makes: {', '.join(arrays)}",
        )
    for name, array in after.items():
        if not isinstance(array, np.ndarray) or array.shape != arrays[name].shape:
            raise _returned_error(
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
            raise _returned_error(
                spec,
                task.advance,
                f"{what} as {_kind(array)}; return {wanted} of shape {shape}, one each",
            )
    return after, rewards, ended


def _returned_error(spec: EnvSpec, function: Any, what: str) -> EnvError:
    """Return the error that a function of a task returned `what`."""
    return EnvError(f"{spec.name}: {source_of(function)} returned {what}")


def _kind(thing: Any) -> str:
    """Return what something is, for a message."""
    if isinstance(thing, np.ndarray):
        return f"{thing.dtype} of shape {thing.shape}"
    return f"a {type(thing).__name__}" + (f" of {len(thing)}" if isinstance(thing, tuple) else "")
