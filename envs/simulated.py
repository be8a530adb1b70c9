"""Environments written as a few functions of arrays: episodes, seeds and resets are kept here.

Axes: E environment copies, C the copies a call is about, N agents, O observation features,
S state features, A actions, F facts, D random draws an episode needs.
"""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from envs.adapters.quirks import split_ends
from envs.base import (
    BoolArray,
    EnvError,
    EnvSpec,
    EnvStep,
    FloatArray,
    copy_seeds,
    refuse_other_copies,
    uniform,
)
from envs.checker import check_arrays, check_task, checked_advance
from envs.checker_rules import checked_actions
from envs.frames import Frame
from envs.plugins import explained, source_of

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class View:
    """What the agents, the team and the masks show of some copies."""

    obs: FloatArray
    """(C, N, O) float32."""
    state: FloatArray
    """(C, S) float32."""
    action_mask: BoolArray | None = None
    """(C, N, A) True where an action is legal."""
    alive: BoolArray | None = None
    """(C, N) True while the agent takes part."""


class Task(Protocol):
    """One task as functions of named arrays whose first axis is the copies."""

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

    def frame(self, arrays: Arrays, copy: int) -> Frame:
        """Return what one copy looks like."""
        ...


class SimulatedEnv:
    """A `VecEnv` that runs a `Task`, pays its rewards every step and has an exact state."""

    def __init__(self, spec: EnvSpec, task: Task) -> None:
        if spec.num_envs < 1:
            raise EnvError(f"{spec.name}: num_envs is {spec.num_envs}; ask for at least 1")
        check_task(spec, task)
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

    def reset(self, seed: int) -> EnvStep:
        """Return the start of a new episode in every copy."""
        num_envs = self._spec.num_envs
        self._seeds = copy_seeds(seed, num_envs)
        self._episodes = np.zeros(num_envs, np.int64)
        self._steps = np.zeros(num_envs, np.int64)
        self._arrays = self._begin(np.arange(num_envs))
        view = self._view(self._arrays, self._steps)
        self._mask = view.action_mask
        nowhere = np.zeros(num_envs, np.bool_)
        nothing, facts = np.zeros(num_envs), self._facts(self._arrays)
        return _env_step(view, view, nothing, nowhere, nowhere.copy(), facts)

    def step(self, actions: npt.NDArray[Any]) -> EnvStep:
        """Return what the joint actions led to; copies that ended show their next episode."""
        if self._arrays is None:
            raise EnvError(f"{self._spec.name}: step before reset; call reset(seed) first")
        checked = checked_actions(self._spec, self._mask, actions)
        with explained(f"{self._spec.name}: advance"):
            answer = self._task.advance(self._arrays, self._steps, checked)
        after, rewards, ended = checked_advance(self._spec, self._task, self._arrays, answer)
        self._arrays = after
        self._steps = self._steps + 1

        out_of_time = self._steps >= self._spec.max_steps
        terminated, truncated = split_ends(self._spec.finite_horizon, ended, out_of_time)
        done = terminated | truncated

        final = self._view(self._arrays, self._steps)
        facts = self._facts(self._arrays)
        view = self._restarted(final, np.flatnonzero(done)) if done.any() else final
        self._mask = view.action_mask
        return _env_step(view, final, np.asarray(rewards, np.float64), terminated, truncated, facts)

    def frame(self, copy: int) -> Frame | None:
        """Return what a copy looks like now; None where the task draws nothing."""
        if self._arrays is None:
            raise EnvError(f"{self._spec.name}: frame before reset; call reset(seed) first")
        if not isinstance(self._task, DrawnTask):
            return None
        return self._task.frame(self._arrays, copy)

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
        refuse_other_copies(self._spec, len(state["seeds"]))
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
        """Return what the task shows of some copies."""
        with explained(f"{self._spec.name}: view"):
            view = self._task.view(arrays, steps)
        if not isinstance(view, View):
            raise EnvError(
                f"{self._spec.name}: view returned a {type(view).__name__}; return "
                f"envs.View(obs=..., state=...): {source_of(self._task.view)}"
            )
        return view

    def _begin(self, rows: npt.NDArray[np.int64]) -> Arrays:
        """Return the arrays of new episodes in the copies `rows`."""
        draws = uniform(self._seeds[rows], self._episodes[rows], self._task.num_draws)
        with explained(f"{self._spec.name}: begin"):
            arrays = self._task.begin(draws)
        check_arrays(self._spec, self._task, arrays, len(rows))
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


def _env_step(
    view: View,
    final: View,
    rewards: FloatArray,
    terminated: BoolArray,
    truncated: BoolArray,
    facts: FloatArray | None,
) -> EnvStep:
    """Return the step that shows `view` now and `final` before any reset."""
    return EnvStep(
        obs=view.obs,
        state=view.state,
        rewards=rewards,
        terminated=terminated,
        truncated=truncated,
        final_obs=final.obs,
        final_state=final.state,
        action_mask=view.action_mask,
        alive=view.alive,
        final_alive=final.alive,
        facts=facts,
    )
