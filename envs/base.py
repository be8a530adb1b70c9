"""The contract between an environment and everything that learns in it.

An environment is batched: one call of `step` advances E environments and resets those whose
episode ended. Any class with the members of `VecEnv` is one; nothing is registered and no base
class is inherited. `envs.check_env` tests the contract on a class of your own.

Axes, in all of `envs`:

    E  environments of the batch, `EnvSpec.num_envs`
    C  those of them that a call is about
    N  agents of a team
    O  observation features, padded to the largest agent's
    S  features of the team's state
    A  actions: choices (discrete) or dimensions (continuous), padded to the largest agent's
    F  facts about an episode
"""

import itertools
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol, TypeVar, cast, runtime_checkable

import numpy as np
import numpy.typing as npt

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
class SpaceLeaf:
    """One array of numbers or of integers in an agent's own observation or action."""

    path: tuple[str, ...] = ()
    """Where it stands in a nested space: ``.key`` in a dict, ``[0]`` in a tuple; empty: it is the
    whole."""
    shape: tuple[int, ...] = ()
    """Shape of the array; empty: one number or integer."""
    choices: tuple[int, ...] = ()
    """How many values each integer has, flattened; empty: these are numbers."""
    start: tuple[int, ...] = ()
    """The smallest value of each integer."""

    @cached_property
    def size(self) -> int:
        """How many features it becomes: every integer is one-hot, numbers stay."""
        return sum(self.choices) if self.choices else int(np.prod(self.shape))

    def write(self, obs: Any, out: FloatArray) -> None:
        """Write this leaf's part of an observation into `size` zeros.

        Raises `EnvError` with what was expected.
        """
        seen = self.found_in(obs)
        array = np.asarray(seen)
        fits = array.shape == self.shape or (self.shape == () and array.size == 1)
        if not fits or array.dtype.kind not in "fiub":
            what = "integers" if self.choices else "numbers"
            raise EnvError(
                f"observed {described(seen)}{self.place}; its space promises {what} of shape "
                f"{self.shape}"
            )
        if not self.choices:
            out[:] = array.reshape(-1)
            return
        for value, (first, count, start) in zip(array.ravel().tolist(), self._layout, strict=True):
            if not 0 <= value - start < count or value % 1:
                raise EnvError(
                    f"observed {value}{self.place}; its space promises integers from {start} to "
                    f"{start + count - 1}"
                )
            out[first + int(value) - start] = 1.0

    @property
    def place(self) -> str:
        """Where it stands, for messages; empty if it is the whole."""
        return f" at {''.join(self.path)}" if self.path else ""

    def found_in(self, value: Any) -> Any:
        """Return this leaf's part of a nested value."""
        for key in self._keys:
            try:
                value = value[key]
            except (KeyError, IndexError, TypeError) as error:
                raise EnvError(
                    f"observed {described(value)} without {key!r}; its space promises something"
                    f"{self.place}"
                ) from error
        return value

    @cached_property
    def _keys(self) -> list[str | int]:
        return [int(step[1:-1]) if step[0] == "[" else step[1:] for step in self.path]

    @cached_property
    def _layout(self) -> list[tuple[int, int, int]]:
        """For each integer its first feature, how many values it has, and the smallest."""
        first = itertools.accumulate(self.choices, initial=0)
        return list(zip(first, self.choices, self.start, strict=False))


@dataclass(frozen=True, kw_only=True)
class NativeSpace:
    """How an agent observes and acts in the environment behind a `VecEnv`, e.g. a PettingZoo one.

    `VecEnv`s show every agent a vector and take integers from 0, or numbers in [-1, 1].
    """

    obs: tuple[SpaceLeaf, ...]
    """What is observed, in the order of `gymnasium.spaces.utils.flatten`, whose result `features`
    returns."""
    action_shape: tuple[int, ...] = ()
    """Shape of a continuous action."""
    action_low: tuple[float, ...] = ()
    """Lower bounds of a continuous action, flattened; empty: the action is an integer."""
    action_high: tuple[float, ...] = ()
    """Upper bounds."""
    action_dtype: str = "float32"
    """NumPy's name for the type of a continuous action."""
    action_start: int = 0
    """The smallest integer of a discrete action."""

    def features(self, obs: Any) -> npt.NDArray[Any]:
        """Return an observation as a vector; raise `EnvError` with what was expected."""
        features = np.zeros(self._ends[-1], np.float32)
        for leaf, end in zip(self.obs, self._ends, strict=True):
            leaf.write(obs, features[end - leaf.size : end])
        return features

    @cached_property
    def _ends(self) -> list[int]:
        """Behind which feature each leaf ends."""
        return [int(end) for end in np.cumsum([leaf.size for leaf in self.obs])]

    def action(self, chosen: Any) -> Any:
        """Return the agent's own action from an integer from 0, or (A,) numbers in [-1, 1]."""
        if not self.action_low:
            return chosen + self.action_start
        low, high = self.bounds
        share = np.asarray(chosen)[: len(self.action_low)].reshape(self.action_shape)
        scaled = (high + low) / 2 + (high - low) / 2 * share
        return np.clip(scaled, low, high).astype(low.dtype, copy=False)

    def chosen(self, action: Any) -> Any:
        """Return the integer from 0, or the numbers in [-1, 1], that `action` makes this action."""
        if not self.action_low:
            return action - self.action_start
        low, high = self.bounds
        half = (high - low) / 2
        share = (np.asarray(action, low.dtype) - (high + low) / 2) / np.where(half == 0, 1, half)
        return np.clip(share, -1.0, 1.0).reshape(-1).astype(np.float32)

    @cached_property
    def bounds(self) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Lower and upper bounds of an action, in its own shape and type."""
        low, high = (
            np.array(bounds, self.action_dtype).reshape(self.action_shape)
            for bounds in (self.action_low, self.action_high)
        )
        return low, high


def described(value: Any) -> str:
    """Return type, and shape where there is one, for a message."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} of shape {value.shape}"
    return f"a {type(value).__name__} ({value!r:.60})"


@dataclass(frozen=True, kw_only=True)
class EnvSpec:
    """The constants of an environment.

    Agents with smaller observations or fewer actions than the largest agent are padded with
    zeros (observations) or with illegal actions; the true sizes stand here.
    """

    name: str
    """Name that `make_env` accepts, e.g. ``mamujoco/halfcheetah_2x3``."""
    num_envs: int
    """E, the environments advanced by one `step`."""
    obs_sizes: tuple[int, ...]
    """Observation features of each agent."""
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
    """The columns of `EnvStep.facts`; empty where it is not given."""
    agent_names: tuple[str, ...] = ()
    """Names of the agents, for messages and films; empty: their numbers."""
    native_spaces: tuple[NativeSpace, ...] = ()
    """Spaces of the agents in the environment behind this one, if they are others; else empty."""

    @property
    def num_agents(self) -> int:
        """N, the size of the team."""
        return len(self.obs_sizes)

    def agent_name(self, agent: int) -> str:
        """Return an agent's name, ``agent 0`` if it has none."""
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
    """What one `reset` or `step` of all E environments returns; `STEP_ARRAYS` has the shapes.

    Where an episode ended, `obs`, `state`, `action_mask` and `alive` already belong to the next
    episode, while `final_obs`, `final_state` and `final_alive` are those after the final step,
    before the reset. Elsewhere the final arrays equal `obs`, `state` and `alive`. The arrays stay
    valid until the next call only.
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
    """(E, N) True while the agent takes part. None: no agent dies."""
    final_alive: BoolArray | None = None
    """(E, N) agents alive after this step, before any reset: an agent that died in the final step
    of a truncated episode has no future to value. None: no agent dies, or the environment does not
    tell, and those that took part in a final step count as alive after it."""
    facts: FloatArray | None = None
    """(E, F) float32, one column per `EnvSpec.facts`: what is known of each episode up to and
    including this step, before any reset. None: the environment tells none."""

    @classmethod
    def first(
        cls,
        *,
        obs: FloatArray,
        state: FloatArray,
        action_mask: BoolArray | None = None,
        alive: BoolArray | None = None,
        facts: FloatArray | None = None,
    ) -> "EnvStep":
        """Return what `reset` returns: nothing is paid, nothing ended, the final arrays are the
        current ones."""
        ended = np.zeros(len(obs), np.bool_)
        return cls(
            obs=obs,
            state=state,
            rewards=np.zeros(len(obs)),
            terminated=ended,
            truncated=ended.copy(),
            final_obs=obs,
            final_state=state,
            action_mask=action_mask,
            alive=alive,
            final_alive=alive,
            facts=facts,
        )


@dataclass(frozen=True)
class StepArray:
    """Shape and type of one array of `EnvStep`."""

    axes: str
    """The axes after E, one letter each."""
    dtype: Literal["float32", "float64", "bool"]
    """Rewards may have any float type; this is the type in which they are kept."""
    promise: str = ""
    """The field of `EnvSpec` that is true where the array is given; empty: always."""

    def shape(self, spec: EnvSpec) -> tuple[int, ...]:
        """Return the shape in one environment, without E."""
        sizes = {
            "N": spec.num_agents,
            "O": spec.obs_size,
            "S": spec.state_size,
            "A": spec.action_size,
            "F": len(spec.facts),
        }
        return tuple(sizes[axis] for axis in self.axes)

    def is_given(self, spec: EnvSpec) -> bool:
        """Return whether environments of this spec return the array."""
        return not self.promise or bool(getattr(spec, self.promise))


STEP_ARRAYS: dict[str, StepArray] = {
    "obs": StepArray("NO", "float32"),
    "state": StepArray("S", "float32"),
    "rewards": StepArray("", "float64"),
    "terminated": StepArray("", "bool"),
    "truncated": StepArray("", "bool"),
    "final_obs": StepArray("NO", "float32"),
    "final_state": StepArray("S", "float32"),
    "action_mask": StepArray("NA", "bool", "masks_actions"),
    "alive": StepArray("N", "bool", "agents_die"),
    "final_alive": StepArray("N", "bool", "agents_die"),
    "facts": StepArray("F", "float32", "facts"),
}
"""Every array of `EnvStep`. Checks, the workers' shared memory and rollout buffers follow it."""


@runtime_checkable
class VecEnv(Protocol):
    """E environments of one cooperative task, constructed as ``Class(num_envs=E, **options)``.

    One that holds more than memory also has `close` (`HasClose`), which its owner calls at
    the end.
    """

    @property
    def spec(self) -> EnvSpec:
        """The constants of this environment."""
        ...

    def reset(self, seed: int) -> EnvStep:
        """Start a new episode in every environment; each derives its own seed from `seed`."""
        ...

    def step(self, actions: npt.NDArray[Any]) -> EnvStep:
        """Apply (E, N) integer or (E, N, A) float actions; environments that end are reset."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to continue exactly: arrays, numbers, strings, nested dicts."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()` of an environment made with the same options."""
        ...


@runtime_checkable
class HasHiddenRewards(Protocol):
    """An environment whose sparse task hides a dense reward, for oracles and evaluation only."""

    def hidden_rewards(self) -> FloatArray:
        """Return the (E,) dense rewards of the latest step, which `EnvStep` never holds."""
        ...


@runtime_checkable
class Replays(Protocol):
    """An environment that is saved as what was done in its open episodes, and repeats it."""

    def repeats(self) -> bool:
        """Return whether an episode is the same again under its seed and actions."""
        ...

    def cut_open_episodes(self) -> None:
        """Let `load_state_dict` truncate the open episodes from now on, not repeat them."""
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


def check_num_envs(spec: EnvSpec, saved: int) -> None:
    """Raise if a state was saved by a batch of another size."""
    if saved != spec.num_envs:
        raise EnvError(
            f"{spec.name}: the saved state has {saved} environments, this batch "
            f"{spec.num_envs}; make it with num_envs={saved}"
        )


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
