"""`check_env`: play an environment and say in plain words where it breaks the contract.

Axes are those of `envs.base`.
"""

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import numpy as np
import numpy.typing as npt

from envs.adapters.spaces import ObsBoundsWarning
from envs.adapters.team_env import DOES_NOT_REPEAT
from envs.base import EnvError, EnvSpec, EnvStep, HasHiddenRewards, Replays, VecEnv
from envs.devices import OnHost
from envs.plugins import explained
from envs.rng import random_actions
from envs.sparse import unwrapped
from envs.traces import Actions, Digests, Played, copied, difference, digests, kept
from envs.validation import (
    MEMBERS,
    Problems,
    check_spec,
    check_step,
    missing_members,
)

_STEPS, _FEWEST = 200, 25
_TIMED = 5
"""Steps by which it is measured how many can be played."""
_SECONDS = 30.0
"""What all checks may take about, before fewer steps are played than `_STEPS`."""
_CHECKS = 6


def check_env(
    env: VecEnv,
    steps: int | None = None,
    seed: int = 0,
    progress: Callable[[str, float], None] | None = None,
) -> list[str]:
    """Return what is wrong with an environment, one sentence each; empty if nothing is.

    Plays random legal actions for `steps` steps, or until every environment must have ended once if
    that is longer, and replays parts of it. If not given, steps are 200 or, where those would take
    longer than about half a minute, fewer, but at least 25. Sentences that begin with "warning: "
    may be meant. `progress` is told what is checked next, and the share of the checks that are
    done.
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
            _check(OnHost(env), steps, seed, problems, progress)
    return problems.sentences()


def _affordable(env: VecEnv, seed: int) -> int:
    """Return how many steps are played in each check, by how long a few take."""
    rng, mask = np.random.default_rng(seed), env.reset(seed).action_mask
    begun = time.perf_counter()
    for _ in range(_TIMED):
        mask = env.step(random_actions(env.spec, rng, mask)).action_mask
    seconds = (time.perf_counter() - begun) / _TIMED
    return max(_FEWEST, min(_STEPS, int(_SECONDS / (_CHECKS * max(seconds, 1e-9)))))


def _check(
    env: OnHost,
    asked: int | None,
    seed: int,
    problems: Problems,
    progress: Callable[[str, float], None] | None,
) -> None:
    """Note what is wrong with an environment whose spec is sound."""
    begun = 0

    def _attempt(doing: str, problems: Problems, check: Callable[..., Any], *given: Any) -> Any:
        nonlocal begun
        if progress is not None:
            progress(doing, begun / _CHECKS)
        begun += 1
        return _attempted(doing, problems, check, *given)

    steps = asked
    if steps is None:
        steps = _attempted("taking the first steps", problems, _affordable, env, seed)
        if steps is None:
            return
    played = _attempt("playing random legal actions", problems, _play, env, steps, seed, problems)
    if played is None:
        return
    _check_ends(env.spec, played, problems)
    _check_rewards(played, problems)
    _check_deaths(played, problems)
    _attempt("replaying the same seed", problems, _check_replay, env, steps, seed, played, problems)
    if _attempt("repeating an episode", problems, _is_unrepeatable, env.inner, problems):
        return
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


def _attempted(doing: str, problems: Problems, check: Callable[..., Any], *arguments: Any) -> Any:
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
    first = copied(env.reset(seed))
    check_step(spec, first, "reset", problems)
    _check_start(first, problems)
    played = Played(first=first, actions=[], steps=[], hidden=[])
    mask = first.action_mask
    for t in range(max(steps, spec.max_steps + 1)):
        if len(problems):
            return None
        actions = random_actions(spec, rng, mask)
        given = actions.copy()
        step = env.step(given)
        check_step(spec, step, f"step {t}", problems)
        if not np.array_equal(given, actions):
            problems.add("actions", f"step {t} wrote into the actions; copy them first")
        played.actions.append(actions)
        if not len(problems):  # else shapes may be wrong
            played.steps.append(kept(step))
        if isinstance(env, HasHiddenRewards):
            played.hidden.append(_hidden(env, spec, f"step {t}", problems))
        mask = None if step.action_mask is None else step.action_mask.copy()
    return None if len(problems) else played


def _check_deaths(played: Played, problems: Problems) -> None:
    """Warn if it is not known which agents were alive when an episode was truncated."""
    if any(step.truncated.any() and step.lacks_final_alive for step in played.steps):
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
    field = difference(digests(env.reset(seed)), digests(played.first))
    if field:
        problems.add(
            "reset",
            f"a second reset({seed}) gave other {field} than the first; start every episode, "
            "count and generator over from the seed",
        )
        return
    for t in range(steps):
        given = played.actions[t].copy()
        field = difference(digests(env.step(given)), played.steps[t].digests)
        if field:
            problems.add(
                "deterministic",
                f"step {t} of the same seed and actions gave other {field}; draw all randomness "
                "from generators that reset(seed) seeds, and keep no reference to the actions",
            )
            return
        given[...] = 0


def _is_unrepeatable(env: VecEnv, problems: Problems) -> bool:
    """Return whether a third-party task does not repeat, which its users may not be able to mend.

    What follows would only say the same in other words.
    """
    inner = unwrapped(env)
    if not isinstance(inner, Replays):
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        repeats = inner.repeats()
    kinds = ("reset", "deterministic")
    if repeats and not any(kind in problems for kind in kinds):
        return False
    for kind in kinds:
        problems.drop(kind)
    problems.warn("repeats", DOES_NOT_REPEAT)
    return True


def _check_seeds(env: VecEnv, steps: int, seed: int, played: Played, problems: Problems) -> None:
    """Warn if another seed changes nothing, or all environments do the same."""
    same = difference(digests(env.reset(seed + 1)), digests(played.first)) is None
    for t in range(steps if same else 0):
        step = env.step(played.actions[t].copy())
        if difference(digests(step), played.steps[t].digests):
            same = False
            break
    if same:
        problems.warn(
            "seeds",
            f"seeds {seed} and {seed + 1} gave the same episodes; fine if the task is "
            "deterministic, else use the seed",
        )
    elif env.spec.num_envs > 1 and _all_alike(env, steps, seed):
        problems.warn(
            "alike",
            f"all {env.spec.num_envs} environments do the same under the same actions; fine if "
            "the task is deterministic, else give every environment a seed of its own",
        )


def _check_actions(env: VecEnv, steps: int, seed: int, played: Played, problems: Problems) -> None:
    """Warn if it does not matter what the agents do."""
    rng = np.random.default_rng(seed + 1)
    step = env.reset(seed)
    for t in range(steps):
        step = env.step(random_actions(env.spec, rng, step.action_mask))
        if difference(digests(step), played.steps[t].digests):
            return
    problems.warn(
        "influence",
        f"other actions changed nothing in {steps} steps, no observation and no reward; make the "
        "task depend on them",
    )


def _all_alike(env: VecEnv, steps: int, seed: int) -> bool:
    """Return whether environments that act alike see and are paid alike."""
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
    expected: list[Digests] = []
    for _ in range(steps):
        actions.append(random_actions(env.spec, rng, mask))
        step = env.step(actions[-1].copy())
        expected.append(digests(step))
        mask = None if step.action_mask is None else step.action_mask.copy()

    env.reset(seed + 1)
    env.load_state_dict(state)
    for t in range(steps):
        field = difference(digests(env.step(actions[t].copy())), expected[t])
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


def _check_start(first: EnvStep, problems: Problems) -> None:
    """Note a reset that ends something, pays something or differs from its final arrays."""
    if first.terminated.any() or first.truncated.any():
        problems.add(
            "start", "reset: an environment is terminated or truncated; start with all False"
        )
    if np.any(first.rewards != 0):
        problems.add("start", f"reset: rewards are {first.rewards}; nothing was done, return zeros")
    for field in ("obs", "state"):
        if not np.array_equal(getattr(first, field), getattr(first, f"final_{field}")):
            problems.add(
                f"start {field}", f"reset: final_{field} differs from {field}; return the same"
            )


def _check_ends(spec: EnvSpec, played: Played, problems: Problems) -> None:
    """Note episodes that end too late or in the wrong way, and wrong final arrays."""
    lengths = np.zeros(spec.num_envs, np.int64)
    timed_out = terminated_then = 0
    for t, step in enumerate(played.steps):
        lengths += 1
        done = step.terminated | step.truncated
        at_limit = lengths == spec.max_steps
        late = np.flatnonzero(at_limit & ~done)
        if late.size:
            problems.add(
                "max_steps",
                f"step {t}: copy {late[0]} goes on after {spec.max_steps} steps, spec.max_steps; "
                "end the episode there or raise max_steps",
            )
            return
        cut = np.flatnonzero(step.truncated & at_limit)
        if spec.finite_horizon and cut.size:
            problems.add(
                "finite_horizon",
                f"step {t}: copy {cut[0]} is truncated at max_steps, but spec.finite_horizon is "
                "True; return terminated there, or set finite_horizon to False",
            )
        timed_out += int((at_limit & done).sum())
        terminated_then += int((at_limit & step.terminated).sum())
        lengths[done] = 0
    if not spec.finite_horizon and timed_out and terminated_then == timed_out:
        problems.add(
            "finite_horizon",
            f"all {timed_out} episodes that reached max_steps were terminated, but "
            "spec.finite_horizon is False; return truncated there, or set finite_horizon to True "
            "(for a PettingZoo or gymnasium team whose task is not over then, the option "
            "limit_terminates True says so)",
        )
    _check_final("obs", played, problems)
    _check_final("state", played, problems)


def _check_final(field: str, played: Played, problems: Problems) -> None:
    """Note final arrays that differ where no episode ended or show the next episode.

    An array that is the same all along, as in a matrix game, cannot show the next episode.
    """
    ends = shown_next = 0
    first = digests(played.first)[field]
    constant = all(step.digests[field] == first for step in played.steps)
    for t, step in enumerate(played.steps):
        done, same = step.terminated | step.truncated, step.is_final[field]
        wrong = np.flatnonzero(~same & ~done)
        if wrong.size:
            problems.add(
                f"final_{field}",
                f"step {t}: final_{field} of copy {wrong[0]} differs from {field}, but its "
                "episode goes on; the two are equal until an episode ends",
            )
        ends += int(done.sum())
        shown_next += int((done & same).sum())
    if ends and shown_next == ends and constant:
        problems.warn(
            f"constant {field}",
            f"{field} is the same in all {len(played.steps)} steps; fine if there is nothing to "
            "see, else show what changes",
        )
    elif ends and shown_next == ends:
        problems.add(
            f"final_{field}",
            f"final_{field} equals {field} at all {ends} episode ends; {field} belongs to the "
            f"next episode then, final_{field} shows the end of the old one, before the reset",
        )


def _check_rewards(played: Played, problems: Problems) -> None:
    """Note a reward before the end that neither is nor sums up the hidden dense rewards."""
    if not played.hidden or _is_dense(played) or _pays_in_parts(played):
        return
    for t, step in enumerate(played.steps):
        early = np.flatnonzero((step.rewards != 0) & ~(step.terminated | step.truncated))
        if early.size:
            problems.add(
                "sparse",
                f"step {t}: copy {early[0]} is paid {step.rewards[early[0]]} before its episode "
                "ends, and an episode's rewards do not add up to the hidden ones; pay zero until "
                "the end, or pay the hidden rewards, at once or some steps together",
            )


def _is_dense(played: Played) -> bool:
    """Return whether every step pays its hidden reward."""
    return all(
        np.array_equal(step.rewards, hidden)
        for step, hidden in zip(played.steps, played.hidden, strict=True)
    )


def _pays_in_parts(played: Played) -> bool:
    """Return whether every finished episode pays the sum of its hidden rewards."""
    owed = np.zeros(len(played.hidden[0]))
    scale = np.ones_like(owed)
    for step, hidden in zip(played.steps, played.hidden, strict=True):
        owed += hidden - step.rewards
        scale += np.abs(hidden)
        done = step.terminated | step.truncated
        if (np.abs(owed) > 1e-4 * scale)[done].any():
            return False
        owed[done], scale[done] = 0.0, 1.0
    return True
