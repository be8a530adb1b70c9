"""What a run of an environment can have wrong between its steps, in sentences.

Axes: E environment copies.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from envs.base import EnvSpec, EnvStep
from envs.checks.steps import Problems

Actions = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Played:
    """One run from a reset, copied step by step."""

    first: EnvStep
    actions: list[Actions]
    steps: list[EnvStep]
    hidden: list[npt.NDArray[Any]]
    """(E,) hidden rewards per step; empty if the environment has none."""


def check_start(first: EnvStep, problems: Problems) -> None:
    """Note a reset that ends something, pays something or differs from its final arrays."""
    if first.terminated.any() or first.truncated.any():
        problems.add("start", "reset: a copy is terminated or truncated; start with all False")
    if np.any(first.rewards != 0):
        problems.add("start", f"reset: rewards are {first.rewards}; nothing was done, return zeros")
    for field in ("obs", "state"):
        if not np.array_equal(getattr(first, field), getattr(first, f"final_{field}")):
            problems.add(
                f"start {field}", f"reset: final_{field} differs from {field}; return the same"
            )


def check_ends(spec: EnvSpec, played: Played, problems: Problems) -> None:
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
    constant = True
    for t, step in enumerate(played.steps):
        now, final = getattr(step, field), getattr(step, f"final_{field}")
        done = step.terminated | step.truncated
        constant &= np.array_equal(now, getattr(played.first, field))
        same = (now == final).reshape(len(done), -1).all(axis=1)
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


def check_rewards(played: Played, problems: Problems) -> None:
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
