"""`check_env`: play an environment and say in plain words where it breaks the contract.

Axes: E environment copies, N agents, T steps played.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import numpy as np
import numpy.typing as npt

from envs.adapters.spaces import ObsBoundsWarning
from envs.base import (
    BoolArray,
    EnvError,
    EnvSpec,
    EnvStep,
    FloatArray,
    HasHiddenRewards,
    VecEnv,
    random_actions,
)
from envs.checker_rules import (
    MEMBERS,
    Actions,
    Played,
    Problems,
    check_ends,
    check_rewards,
    check_spec,
    check_start,
    check_step,
    missing_members,
)
from envs.plugins import explained, source_of

# What a task's functions of arrays can return wrong, said with their file and line.
#
# Axes: E environment copies, C the copies a call is about.


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


def check_env(env: VecEnv, steps: int = 200, seed: int = 0) -> list[str]:
    """Return what is wrong with an environment, one sentence each; empty if nothing is.

    Plays random legal actions for `steps` steps, or until every copy must have ended once if
    that is longer, and replays parts of it. Sentences that begin with "warning: " may be meant.
    The environment is left wherever the last check ended: reset it before use.
    """
    name = type(env).__name__
    missing = missing_members(env)
    if missing:
        return [f"{name} has no {', '.join(missing)}; an environment has {', '.join(MEMBERS)}"]
    problems = Problems(env.spec.name)
    check_spec(env.spec, problems)
    if not len(problems):
        with _bounds_counted(env.spec, problems):
            _check(env, steps, seed, problems)
    return problems.sentences()


def _check(env: VecEnv, steps: int, seed: int, problems: Problems) -> None:
    """Note what is wrong with an environment whose spec is sound."""
    played = _attempt("playing random legal actions", problems, _play, env, steps, seed, problems)
    if played is None:
        return
    check_ends(env.spec, played, problems)
    check_rewards(played, problems)
    _check_deaths(played, problems)
    _attempt("replaying the same seed", problems, _check_replay, env, steps, seed, played, problems)
    _attempt("trying another seed", problems, _check_seeds, env, steps, seed, played, problems)
    _attempt("trying other actions", problems, _check_actions, env, steps, seed, played, problems)
    _attempt("saving and loading", problems, _check_resume, env, steps, seed, problems)


@contextmanager
def _bounds_counted(spec: EnvSpec, problems: Problems) -> Iterator[None]:
    """Note observations outside their space, about which training only warns."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ObsBoundsWarning)
        yield
    for warning in caught:
        if issubclass(warning.category, ObsBoundsWarning):
            problems.add("bounds", str(warning.message).removeprefix(f"{spec.name}, "))
        else:
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )


def _attempt(doing: str, problems: Problems, check: Callable[..., Any], *arguments: Any) -> Any:
    """Return what the check returns, or note the exception that the environment raised."""
    try:
        with explained(doing, "accept every legal action in any order of calls"):
            return check(*arguments)
    except EnvError as error:
        problems.add("raised", str(error))
        return None


def _play(env: VecEnv, steps: int, seed: int, problems: Problems) -> Played | None:
    """Return a run with random legal actions, or None at the first step that does not fit."""
    spec = env.spec
    rng = np.random.default_rng(seed)
    first = _copied(env.reset(seed))
    check_step(spec, first, "reset", problems)
    check_start(first, problems)
    played = Played(first=first, actions=[], steps=[], hidden=[])
    mask = first.action_mask
    for t in range(max(steps, spec.max_steps + 1)):
        if len(problems):
            return None
        actions = random_actions(spec, rng, mask)
        given = actions.copy()
        step = _copied(env.step(given))
        check_step(spec, step, f"step {t}", problems)
        if not np.array_equal(given, actions):
            problems.add("actions", f"step {t} wrote into the actions; copy them first")
        played.actions.append(actions)
        played.steps.append(step)
        if isinstance(env, HasHiddenRewards):
            played.hidden.append(_hidden(env, spec, f"step {t}", problems))
        mask = step.action_mask
    return None if len(problems) else played


def _check_deaths(played: Played, problems: Problems) -> None:
    """Warn if nobody can tell who had died when an episode was interrupted."""
    if any(
        s.truncated.any() and s.alive is not None and s.final_alive is None for s in played.steps
    ):
        problems.warn(
            "final_alive",
            "agents die and episodes are truncated, but final_alive is missing: an agent that dies "
            "in the last step is valued as if it lived on; fine if that cannot be, else return the "
            "agents alive after the final step, before the reset",
        )


def _hidden(
    env: HasHiddenRewards, spec: EnvSpec, where: str, problems: Problems
) -> npt.NDArray[Any]:
    """Return a copy of the hidden rewards; note a wrong shape or numbers that are not finite."""
    hidden = np.array(env.hidden_rewards())
    if hidden.shape != (spec.num_envs,) or not np.isfinite(hidden).all():
        problems.add(
            "hidden",
            f"{where}: hidden_rewards() has shape {hidden.shape}, finite: "
            f"{bool(np.isfinite(hidden).all())}; return {(spec.num_envs,)} finite numbers",
        )
    return hidden


def _check_replay(env: VecEnv, steps: int, seed: int, played: Played, problems: Problems) -> None:
    """Note a reset that does not start over, and steps that the seed does not determine."""
    field = _difference(env.reset(seed), played.first)
    if field:
        problems.add(
            "reset",
            f"a second reset({seed}) gave other {field} than the first; start every episode, "
            "count and generator over from the seed",
        )
        return
    for t in range(steps):
        given = played.actions[t].copy()
        step = env.step(given)
        field = _difference(step, played.steps[t])
        if field:
            problems.add(
                "deterministic",
                f"step {t} of the same seed and actions gave other {field}; draw all randomness "
                "from generators that reset(seed) seeds, and keep no reference to the actions",
            )
            return
        given[...] = 0


def _check_seeds(env: VecEnv, steps: int, seed: int, played: Played, problems: Problems) -> None:
    """Warn if another seed changes nothing, or all copies do the same."""
    first = played.first
    same = _difference(env.reset(seed + 1), first) is None
    for t in range(steps if same else 0):
        if _difference(env.step(played.actions[t].copy()), played.steps[t]):
            same = False
            break
    if same:
        problems.warn(
            "seeds",
            f"seeds {seed} and {seed + 1} gave the same episodes; fine if the task is "
            "deterministic, else use the seed",
        )
    elif env.spec.num_envs > 1 and _copies_alike(env, steps, seed):
        problems.warn(
            "copies",
            f"all {env.spec.num_envs} copies do the same under the same actions; fine if the task "
            "is deterministic, else give every copy a seed of its own",
        )


def _check_actions(env: VecEnv, steps: int, seed: int, played: Played, problems: Problems) -> None:
    """Warn if it does not matter what the agents do."""
    rng = np.random.default_rng(seed + 1)
    step = env.reset(seed)
    for t in range(steps):
        step = env.step(random_actions(env.spec, rng, step.action_mask))
        if _difference(step, played.steps[t]):
            return
    problems.warn(
        "influence",
        f"other actions changed nothing in {steps} steps, no observation and no reward; make the "
        "task depend on them",
    )


def _copies_alike(env: VecEnv, steps: int, seed: int) -> bool:
    """Return whether copies that act alike see and are paid alike."""
    rng = np.random.default_rng(seed)
    step = env.reset(seed)
    for _ in range(steps):
        arrays = (getattr(step, field.name) for field in fields(EnvStep))
        if any(array is not None and (array != array[:1]).any() for array in arrays):
            return False
        actions = random_actions(env.spec, rng, step.action_mask)
        step = env.step(np.repeat(actions[:1], env.spec.num_envs, axis=0))
    return True


def _check_resume(env: VecEnv, steps: int, seed: int, problems: Problems) -> None:
    """Note a state that does not continue the run exactly after another run."""
    rng = np.random.default_rng(seed)
    step = env.reset(seed)
    for _ in range(steps // 2):
        step = env.step(random_actions(env.spec, rng, step.action_mask))
    mask = None if step.action_mask is None else step.action_mask.copy()
    state = env.state_dict()
    _check_content(state, "state_dict()", problems)
    actions: list[Actions] = []
    expected: list[EnvStep] = []
    for _ in range(steps):
        actions.append(random_actions(env.spec, rng, mask))
        expected.append(_copied(env.step(actions[-1].copy())))
        mask = expected[-1].action_mask

    env.reset(seed + 1)
    env.load_state_dict(state)
    for t in range(steps):
        field = _difference(env.step(actions[t].copy()), expected[t])
        if field:
            problems.add(
                "resume",
                f"step {t} after load_state_dict gave other {field} than step {t} after "
                "state_dict; save copies of everything that changes, generators and counts too",
            )
            return


def _check_content(content: Any, where: str, problems: Problems) -> None:
    """Note what a checkpoint cannot hold."""
    if isinstance(content, dict):
        for key, value in content.items():
            _check_content(value, f"{where}[{key!r}]", problems)
    elif not isinstance(content, np.ndarray | np.generic | int | float | str | None):
        problems.add(
            "state_dict",
            f"{where} is a {type(content).__name__}; save arrays, numbers, strings and dicts",
        )


def _copied(step: EnvStep) -> EnvStep:
    """Return the step with arrays of its own, since the next call may reuse them."""
    arrays: dict[str, Any] = {}
    for field in fields(EnvStep):
        array = getattr(step, field.name)
        arrays[field.name] = array.copy() if isinstance(array, np.ndarray) else array
    return EnvStep(**arrays)


def _difference(step: EnvStep, other: EnvStep) -> str | None:
    """Return the first field in which two steps differ, or None."""
    for field in fields(EnvStep):
        ours, theirs = getattr(step, field.name), getattr(other, field.name)
        if (ours is None) != (theirs is None):
            return field.name
        if ours is not None and not np.array_equal(ours, theirs):
            return field.name
    return None
