"""Random legal actions.

Axes: E environment copies, N agents, A actions.
"""

from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

# The contract between an environment and everything that learns in it.
#
# Axes: E environment copies, N agents, O observation features, S state features, A actions, F
# facts.
#
# An environment is *batched*: one call to `step` advances all E copies and resets those that
# ended. Any class with the members of `VecEnv` is an environment; nothing is registered and no
# base class is inherited. `envs.check_env` tests the contract on a class of your own.


FloatArray = npt.NDArray[np.floating[Any]]
BoolArray = npt.NDArray[np.bool_]


class EnvError(ValueError):
    """An environment was asked for, or returned, something outside the contract."""


@dataclass(frozen=True, kw_only=True)
class Fact:
    """A named number about an episode, for metrics, for rules and for descriptions in words."""

    name: str
    """Identifier, e.g. ``won`` or ``ally_health``."""
    meaning: str
    """A short phrase, e.g. ``health left to the allies``."""
    unit: str = ""
    """E.g. ``m`` or ``steps``; empty for counts, shares and yes (1) or no (0)."""
    higher_is_better: bool | None = None
    """None where neither direction is better."""
    is_success: bool = False
    """Whether it is 1 where an episode succeeded and 0 where not: its mean, the success rate, is
    shown beside the return."""


@dataclass(frozen=True, kw_only=True)
class EnvSpec:
    """What never changes about an environment.

    Agents with smaller observations or fewer actions than the largest agent are padded with
    zeros (observations) or with illegal actions; the true sizes stand here.
    """

    name: str
    """Name that `make_env` accepts, e.g. ``mamujoco/halfcheetah_2x3``."""
    num_envs: int
    """E, the copies advanced by one `step`."""
    obs_sizes: tuple[int, ...]
    """Features each agent really observes, one entry per agent."""
    state_size: int
    """S, the features of the team's state."""
    action_kind: Literal["discrete", "continuous"]
    """Discrete: one integer per agent. Continuous: a vector in [-1, 1] per agent."""
    action_sizes: tuple[int, ...]
    """Choices (discrete) or dimensions (continuous) of each agent's action."""
    max_steps: int
    """T_max, the longest episode in steps; scales the preference logit."""
    finite_horizon: bool
    """True: reaching `max_steps` ends the task (terminated). False: it interrupts (truncated)."""
    masks_actions: bool = False
    """Whether `EnvStep.action_mask` is given."""
    agents_die: bool = False
    """Whether `EnvStep.alive` is given, and `final_alive` may be."""
    facts: tuple[Fact, ...] = ()
    """What `EnvStep.facts` tells, in order; empty where it is not given."""
    agent_names: tuple[str, ...] = ()
    """What the agents are called, for messages and films; empty: by their numbers."""

    @property
    def num_agents(self) -> int:
        """N, the size of the team."""
        return len(self.obs_sizes)

    def agent_name(self, agent: int) -> str:
        """Return what an agent is called, ``agent 0`` if it has no name."""
        return self.agent_names[agent] if self.agent_names else f"agent {agent}"

    @property
    def successes(self) -> tuple[str, ...]:
        """Names of the facts that are 1 where an episode succeeded."""
        return tuple(fact.name for fact in self.facts if fact.is_success)

    @property
    def obs_size(self) -> int:
        """O, the padded observation size."""
        return max(self.obs_sizes)

    @property
    def action_size(self) -> int:
        """A, the padded number of choices or dimensions."""
        return max(self.action_sizes)


@dataclass(frozen=True, kw_only=True)
class EnvStep:
    """What one `reset` or `step` of all copies returns.

    Where a copy's episode ended, `obs`, `state`, `action_mask` and `alive` already belong to its
    next episode, while `final_obs`, `final_state` and `final_alive` show the end of the old one.
    Elsewhere the final arrays equal `obs`, `state` and `alive`. The arrays stay valid until the
    next call only.
    """

    obs: FloatArray
    """(E, N, O) float32, zero beyond an agent's own size."""
    state: FloatArray
    """(E, S) float32."""
    rewards: FloatArray
    """(E,) the team's task reward for this step; with a sparse task, zero until the end."""
    terminated: BoolArray
    """(E,) the task itself ended."""
    truncated: BoolArray
    """(E,) the episode was interrupted; the future still has value."""
    final_obs: FloatArray
    """(E, N, O) observations this step led to, before any reset."""
    final_state: FloatArray
    """(E, S) state this step led to, before any reset."""
    action_mask: BoolArray | None = None
    """(E, N, A) True where an action is legal; every agent always has one. None: all legal."""
    alive: BoolArray | None = None
    """(E, N) True while the agent takes part. None: nobody dies."""
    final_alive: BoolArray | None = None
    """(E, N) agents alive after this step, before any reset: one that died in the final step of a
    truncated episode has no value to bootstrap from. None: nobody dies, or the environment does not
    tell, and whoever acted in a final step counts as alive after it."""
    facts: FloatArray | None = None
    """(E, F) float32, one column per `EnvSpec.facts`: what is known of each copy's episode up to
    and including this step, before any reset. None: the environment tells none."""


@runtime_checkable
class VecEnv(Protocol):
    """E copies of one cooperative task. Constructed as ``Class(num_envs=E, **options)``.

    What holds more than memory also has `close` (`HasClose`), which whoever made it calls at the
    end.
    """

    @property
    def spec(self) -> EnvSpec:
        """The constants of this environment."""
        ...

    def reset(self, seed: int) -> EnvStep:
        """Start a new episode in every copy; each copy derives its own seed from `seed`."""
        ...

    def step(self, actions: npt.NDArray[Any]) -> EnvStep:
        """Apply (E, N) integer or (E, N, A) float actions; copies that end are reset."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue exactly: arrays, numbers, strings, nested dicts."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()` of an environment made with the same options."""
        ...


@runtime_checkable
class HasHiddenRewards(Protocol):
    """An environment whose sparse task hides a dense reward, for oracles and evaluation only."""

    def hidden_rewards(self) -> FloatArray:
        """(E,) the dense reward of the latest step. Never part of `EnvStep`."""
        ...


@runtime_checkable
class HasClose(Protocol):
    """An environment that holds more than memory: processes, files, windows."""

    def close(self) -> None:
        """Release all of it; a second call does nothing."""
        ...


def close_env(env: VecEnv) -> None:
    """Release what an environment holds, if it holds anything."""
    if isinstance(env, HasClose):
        env.close()


# What every environment asks of a state it is to continue from.


def refuse_other_copies(spec: EnvSpec, saved: int) -> None:
    """Raise if a state was saved by another number of copies."""
    if saved != spec.num_envs:
        raise EnvError(
            f"{spec.name}: the saved state has {saved} copies, this environment {spec.num_envs}; "
            f"make it with num_envs={saved}"
        )


# Random numbers for many environment copies at once, without a generator object per copy.
#
# Each copy has a seed and a count of the episodes it has begun; a draw is a hash of the two and
# the draw's index (SplitMix64, Steele, Lea and Flood, OOPSLA 2014). Saving the seeds and the
# counts saves the randomness, and no copy's draws depend on another's.


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return SplitMix64's output function of each element."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def copy_seeds(seed: int, num_envs: int) -> npt.NDArray[np.uint64]:
    """Return (E,) distinct 64-bit seeds, one per environment copy, derived from one seed."""
    copies = np.arange(1, num_envs + 1, dtype=np.uint64)
    return _mix(_mix(np.full(num_envs, seed % 2**64, np.uint64)) + copies * _GOLDEN)


def uniform(
    seeds: npt.NDArray[np.uint64], counts: npt.NDArray[Any], size: int
) -> npt.NDArray[np.float64]:
    """Return (E, size) numbers in [0, 1) that depend only on each copy's seed and count."""
    streams = _mix(seeds + counts.astype(np.uint64) * _GOLDEN)
    draws = np.arange(1, size + 1, dtype=np.uint64) * _GOLDEN
    return (_mix(streams[:, None] + draws) >> np.uint64(11)) * np.float64(2.0**-53)


def normal(
    seeds: npt.NDArray[np.uint64], counts: npt.NDArray[Any], size: int
) -> npt.NDArray[np.float64]:
    """Return (E, size) standard normal numbers by the Box-Muller transform of `uniform`."""
    u = uniform(seeds, counts, 2 * size)
    radius = np.sqrt(-2.0 * np.log1p(-u[:, :size]))
    return radius * np.cos(2.0 * np.pi * u[:, size:])


def random_actions(
    spec: EnvSpec, rng: np.random.Generator, action_mask: BoolArray | None
) -> npt.NDArray[Any]:
    """Return (E, N) integers uniform over the legal choices, or (E, N, A) floats in [-1, 1].

    Dimensions beyond an agent's own size are zero.
    """
    shape = (spec.num_envs, spec.num_agents, spec.action_size)
    own = np.arange(spec.action_size) < np.asarray(spec.action_sizes)[:, None]
    if spec.action_kind == "continuous":
        return np.where(own, rng.uniform(-1.0, 1.0, shape), 0.0).astype(np.float32)
    legal = own if action_mask is None else own & action_mask
    chosen: npt.NDArray[np.int64] = np.where(legal, rng.random(shape), -1.0).argmax(axis=2)
    return chosen
