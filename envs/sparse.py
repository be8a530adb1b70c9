"""When a task pays: any environment with a dense reward made sparse.

Axes are those of `envs.base`; C: environments whose episode ended.
"""

from collections.abc import Callable
from dataclasses import replace
from operator import itemgetter
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from envs.base import (
    BoolArray,
    EnvError,
    EnvSpec,
    EnvStep,
    FloatArray,
    HasHiddenRewards,
    VecEnv,
    close_env,
)
from envs.frames import Frame, HasFrames
from envs.plugins import did_you_mean, explained, load_attribute, source_of, users_call
from envs.validation import answered

RewardMode = Literal["episodic", "every_k", "outcome", "dense"]
Outcome = Callable[[dict[str, FloatArray]], Any]
"""From the facts by name, each (C,), of episodes that ended to what they pay, (C,) numbers."""

_OUTCOME_HINT = "the name of a fact or an import path such as my_envs:score"


class SparseRewards:
    """A `VecEnv` that pays the rewards of another one later; nothing else changes.

    `reward_mode` says when: "episodic" pays zero until an episode ends, then its rewards' sum;
    "every_k" pays the sum of the last `reward_every` steps, and what is left at the end;
    "outcome" pays at the end only, what `reward_outcome` makes of the episode's final facts;
    "dense" pays every step.
    """

    def __init__(
        self,
        env: VecEnv,
        reward_mode: str = "episodic",
        *,
        reward_every: int | None = None,
        reward_outcome: str | Outcome | None = None,
    ) -> None:
        """`reward_outcome`: a fact's name, or a function from facts by name to numbers, one per
        episode that ended, or where to import it from."""
        self.inner = env
        """The environment that is made sparse."""
        _check_mode(env.spec.name, reward_mode, reward_every, reward_outcome)
        # Episodic and dense are the ends of one scale: never before the end, and every step.
        self._every = {"every_k": reward_every, "dense": 1}.get(reward_mode)
        self._outcome = None if reward_outcome is None else _outcome(env.spec, reward_outcome)
        self.spec = replace(env.spec, paid_at_end=self._every is None)
        if self._outcome is not None:
            self._outcome_called = f"{env.spec.name}: reward_outcome {source_of(self._outcome)}"
        self._called = users_call(env, "step")
        self._sums = np.zeros(env.spec.num_envs)
        self._counts = np.zeros(env.spec.num_envs, np.int64)
        self._dense = np.zeros(env.spec.num_envs)

    def reset(self, seed: int) -> EnvStep:
        """Start a new episode in every environment."""
        self._sums[:] = 0.0
        self._counts[:] = 0
        self._dense[:] = 0.0
        return answered(self.spec, self.inner.reset(seed), "reset", users_call(self, "reset"))

    def step(self, actions: npt.NDArray[Any]) -> EnvStep:
        """Return the inner environment's step with the rewards that are due."""
        step = answered(self.spec, self.inner.step(actions), "step", self._called)
        self._dense[:] = step.rewards
        self._sums += self._dense
        self._counts += 1
        done = step.terminated | step.truncated
        due = done if self._every is None else done | (self._counts >= self._every)
        rewards = np.zeros(len(due))
        if due.any():
            rewards[due] = self._sums[due] if self._outcome is None else self._outcomes(step, due)
            self._sums[due] = 0.0
            self._counts[due] = 0
        return replace(step, rewards=rewards)

    def hidden_rewards(self) -> FloatArray:
        """Return the (E,) dense rewards of the latest step."""
        if isinstance(self.inner, HasHiddenRewards):
            return self.inner.hidden_rewards()
        return self._dense.copy()

    def close(self) -> None:
        """Release what the inner environment holds."""
        close_env(self.inner)

    def frame(self, index: int) -> Frame | None:
        """Return what an environment looks like now, if the inner environment shows it."""
        return self.inner.frame(index) if isinstance(self.inner, HasFrames) else None

    def state_dict(self) -> dict[str, Any]:
        """Return the inner environment's state and the rewards that are not paid yet."""
        return {
            "inner": self.inner.state_dict(),
            "sums": self._sums.copy(),
            "counts": self._counts.copy(),
            "dense": self._dense.copy(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self.inner.load_state_dict(state["inner"])
        self._sums[:] = state["sums"]
        self._counts[:] = state["counts"]
        self._dense[:] = state["dense"]

    def _outcomes(self, step: EnvStep, done: BoolArray) -> npt.NDArray[np.float64]:
        """Return (C,) what the episodes that ended pay."""
        assert self._outcome is not None
        assert step.facts is not None
        names = [fact.name for fact in self.spec.facts]
        facts = dict(zip(names, step.facts[done].T.copy(), strict=True))
        shape = (int(done.sum()),)
        given = (
            f"it is given the facts {', '.join(names)} as arrays of one number per episode that "
            f"ended, shape {shape} here; return such an array"
        )
        with explained(self._outcome_called, given):
            paid = np.asarray(self._outcome(facts), np.float64)
        if paid.shape != shape or not np.isfinite(paid).all():
            raise EnvError(
                f"{self._outcome_called} returned {paid} of shape {paid.shape}, expected finite "
                f"numbers; {given}"
            )
        return paid


def unwrapped(env: VecEnv) -> VecEnv:
    """Return the environment inside `SparseRewards`, or the environment itself."""
    return unwrapped(env.inner) if isinstance(env, SparseRewards) else env


def _check_mode(name: str, mode: str, every: int | None, outcome: str | Outcome | None) -> None:
    """Raise unless the mode is known and has exactly the settings that it needs."""
    known = get_args(RewardMode)
    if mode not in known:
        raise EnvError(
            f"{name}: reward_mode is {mode!r}{did_you_mean(str(mode), list(known))}; "
            f"choose one of {', '.join(map(repr, known))}"
        )
    if mode == "every_k" and (not isinstance(every, int) or every < 1):
        raise EnvError(f"{name}: reward_every is {every!r}; give the steps between two rewards")
    if mode == "outcome" and not outcome:
        raise EnvError(f"{name}: reward_mode 'outcome' needs reward_outcome; give {_OUTCOME_HINT}")
    for option, value, its_mode in (
        ("reward_every", every, "every_k"),
        ("reward_outcome", outcome, "outcome"),
    ):
        if value is not None and mode != its_mode:
            raise EnvError(
                f"{name}: {option} means nothing to reward_mode {mode!r}; leave it out or set "
                f"reward_mode to {its_mode!r}"
            )


def _outcome(spec: EnvSpec, outcome: str | Outcome) -> Outcome:
    """Return the function that `outcome` is, names or selects by a fact's name."""
    if not spec.facts:
        raise EnvError(
            f"{spec.name}: reward_mode 'outcome' reads an episode's facts, but the environment "
            "tells none; list them in EnvSpec.facts and return EnvStep.facts, or choose "
            "'episodic' or 'every_k'"
        )
    if callable(outcome):
        return outcome
    if ":" in outcome:
        return load_attribute(outcome, "reward_outcome", "an import path such as my_envs:score")
    names = [fact.name for fact in spec.facts]
    if outcome not in names:
        raise EnvError(
            f"{spec.name}: reward_outcome is {outcome!r}{did_you_mean(outcome, names)}; "
            f"give {_OUTCOME_HINT}; the facts are {', '.join(names)}"
        )
    return itemgetter(outcome)
