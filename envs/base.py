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
    A  actions: choices (discrete), dimensions (continuous) or both side by side (composite), padded
       to the largest agent's
    F  facts about an episode
"""

import itertools
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol, TypeVar, cast, runtime_checkable

import numpy as np
import numpy.typing as npt

from envs.errors import EnvError as EnvError
from envs.native import NativeSpace, SpaceLeaf

FloatArray = npt.NDArray[np.floating[Any]]
BoolArray = npt.NDArray[np.bool_]
ActionKind = Literal["discrete", "continuous", "composite"]
"""See `EnvSpec.action_kind`."""


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
class EntityList:
    """Where a list of like entities stands in what an agent observes."""

    name: str
    """What they are, e.g. ``enemies``."""
    first: int
    """Index of the first entity's first feature; the others' follow."""
    count: int
    """How many there are; an entity whose features are all zero is absent."""
    size: int
    """Features of each."""
    first_action: int = -1
    """Number of the discrete action that is about the first entity, such as to attack it, where
    those about the others follow; -1: no action is about any."""


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
    action_kind: ActionKind
    """Discrete: one integer per agent. Continuous: a vector in [-1, 1] per agent. Composite: a
    vector per agent that holds `action_parts` side by side."""
    action_sizes: tuple[int, ...]
    """Choices (discrete), dimensions (continuous) or both (composite) of each agent's action."""
    max_steps: int
    """T_max, the longest episode in steps; scales the preference logit."""
    action_parts: tuple[tuple[int, ...], ...] = ()
    """Of composite actions, the parts of each agent's: k for a choice among k, one-hot in k
    columns, or 0 for a number in [-1, 1], one column."""
    finite_horizon: bool
    """True: reaching `max_steps` ends the task (terminated), and critics see the time that is over.
    False: it interrupts (truncated)."""
    paid_at_end: bool = False
    """Whether rewards are zero before an episode's last step. A policy that is paid these rewards
    then treats every time limit as the end of the task, whatever `finite_horizon` says."""
    masks_actions: bool = False
    """Whether `EnvStep.action_mask` is given."""
    agents_die: bool = False
    """Whether `EnvStep.alive` is given, and `final_alive` may be."""
    facts: tuple[Fact, ...] = ()
    """The columns of `EnvStep.facts`; empty where it is not given."""
    agent_names: tuple[str, ...] = ()
    """Names of the agents, for messages and films; empty: their numbers."""
    obs_image: tuple[int, ...] = ()
    """Height, width and channels where each agent observes one picture of that shape, flattened:
    `EnvStep.obs` is uint8, 0 to 255, and not standardised. Empty: observations are numbers."""
    state_images: tuple[int, ...] = ()
    """Count, height, width and channels where the state is so many pictures, one behind the other,
    and uint8. Empty: numbers."""
    entities: tuple[EntityList, ...] = ()
    """The lists of entities that each agent observes; features outside of them are its own. They
    are read by ``network.encoder = "entities"``."""
    native_spaces: tuple[NativeSpace, ...] = ()
    """Spaces of the agents in the environment behind this one, if they are others; else empty."""

    @property
    def num_agents(self) -> int:
        """N, the size of the team."""
        return len(self.obs_sizes)

    def agent_name(self, agent: int) -> str:
        """Return an agent's name, ``agent 0`` if it has none."""
        return self.agent_names[agent] if self.agent_names else f"agent {agent}"

    @cached_property
    def own_spaces(self) -> tuple[NativeSpace, ...]:
        """How each agent observes and acts: `native_spaces`, or those of the arrays here."""
        return self.native_spaces or tuple(
            NativeSpace(obs=(SpaceLeaf(shape=(self.obs_sizes[agent],)),), act=self._leaves(agent))
            for agent in range(self.num_agents)
        )

    def _leaves(self, agent: int) -> tuple[SpaceLeaf, ...]:
        """Return an agent's action as leaves; a composite one is a tuple, or what it holds alone.

        Choices that follow each other are one array, and so are numbers.
        """
        size = self.action_sizes[agent]
        if self.action_kind == "discrete":
            return (SpaceLeaf(choices=(size,), start=(0,), dtype="int64"),)
        parts = (0,) * size if self.action_kind == "continuous" else self.action_parts[agent]
        runs = [tuple(run) for _, run in itertools.groupby(parts, bool)]
        leaves = []
        for index, run in enumerate(runs):
            count, path = len(run), (f"[{index}]",) if len(runs) > 1 else ()
            shape = () if run[0] and count == 1 else (count,)
            if run[0]:
                start = (0,) * count
                leaves += [
                    SpaceLeaf(path=path, shape=shape, choices=run, start=start, dtype="int64")
                ]
            else:
                bound = (1.0,) * count
                leaves += [SpaceLeaf(path=path, shape=shape, low=(-1.0,) * count, high=bound)]
        return tuple(leaves)

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
    """(E, N, O) float32, zero beyond an agent's own size; uint8 with `EnvSpec.obs_image`."""
    state: FloatArray
    """(E, S) float32; uint8 with `EnvSpec.state_images`."""
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
    pictures: str = ""
    """The field of `EnvSpec` that is not empty where the array holds pictures, and is uint8."""

    def dtype_in(self, spec: EnvSpec) -> str:
        """Return the type of the array in environments of this spec."""
        return "uint8" if self.pictures and getattr(spec, self.pictures) else self.dtype

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
    "obs": StepArray("NO", "float32", pictures="obs_image"),
    "state": StepArray("S", "float32", pictures="state_images"),
    "rewards": StepArray("", "float64"),
    "terminated": StepArray("", "bool"),
    "truncated": StepArray("", "bool"),
    "final_obs": StepArray("NO", "float32", pictures="obs_image"),
    "final_state": StepArray("S", "float32", pictures="state_images"),
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
