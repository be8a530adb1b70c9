"""Data that crosses modules: transitions, rollouts, rewards, batches, and finished episodes.

Axes: T time, E environments, N agents, M episodes, B pairs (or chosen episodes), K sampled steps,
L steps of the longest episode; O observation, S state, A action features, F facts, C chunks, H
hidden units. ``*L`` are any leading axes: (T, E) in a rollout, (M, K) in a batch of episodes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int64, Num
from torch import Tensor

from envs import EnvSpec
from envs.base import STEP_ARRAYS


@dataclass(frozen=True, kw_only=True)
class History:
    """Which steps follow which, for a reward model that reads whole episodes."""

    starts: Bool[Tensor, "*L"]
    """Steps at which an episode starts: the hidden state is reset before them."""
    time_axis: int
    """Along which steps follow each other: 0 in a rollout (T, E), 1 in a batch (M, K)."""
    present: Bool[Tensor, "*L"] | None = None
    """Steps that are there; the others fill up a batch. None: all."""
    hidden: Mapping[str, Tensor] | None = None
    """Each network's hidden state before the first steps, (E, N, H). None: zero."""


@dataclass(frozen=True, kw_only=True)
class Transitions:
    """Steps as a reward model sees them: no reward field, so none can leak into what it learns."""

    obs: Num[Tensor, "*L N O"]
    """Pictures are uint8 (`EnvSpec.obs_image`), and so are states of them."""
    state: Num[Tensor, "*L S"]
    actions: Int64[Tensor, "*L N"] | Float[Tensor, "*L N A"]
    """What the environment received: continuous actions are clipped to [-1, 1]."""
    next_obs: Num[Tensor, "*L N O"]
    """What the step led to; at an episode's end the real final observation, never the reset."""
    next_state: Num[Tensor, "*L S"]
    terminated: Bool[Tensor, "*L"]
    alive: Bool[Tensor, "*L N"] | None = None
    """Agents that acted in this step. None: all."""
    next_alive: Bool[Tensor, "*L N"] | None = None
    """Agents alive after it; at an episode's end as `EnvStep.final_alive` says. None: all."""
    action_mask: Bool[Tensor, "*L N A"] | None = None
    """Legal actions. None: all."""
    history: History | None = None
    """Given to a reward model that reads whole episodes; for others every step stands by itself."""

    def packed(self, places: Int64[Tensor, "P"]) -> "Transitions":
        """Return the P steps at some places of the two leading axes, one after another."""
        assert self.history is None, "steps that follow one another are not to be taken apart"
        given = ((f.name, getattr(self, f.name)) for f in fields(self))
        rows = {name: x.flatten(0, 1).index_select(0, places) for name, x in given if x is not None}
        return Transitions(**rows)


@dataclass(frozen=True, kw_only=True)
class FinishedEpisodes:
    """B episodes that ended within a rollout, ordered by their end."""

    end_time: Int64[Tensor, "B"]
    """Index in the rollout of the last step."""
    env: Int64[Tensor, "B"]
    lengths: Int64[Tensor, "B"]
    """Steps, also those taken in earlier rollouts."""
    returns: Float[Tensor, "B"]
    """Sum of the task rewards."""
    terminated: Bool[Tensor, "B"]
    facts: Float[Tensor, "B F"] | None = None
    """Facts of each, in the order of `EnvSpec.facts`."""


@dataclass(frozen=True, kw_only=True)
class KnownReturns:
    """What a run knows of the returns of its episodes."""

    least: float
    """The least one so far."""
    deviation: float
    """Standard deviation of those kept."""


ANY_RETURN = KnownReturns(least=0.0, deviation=1.0)
"""Nothing is known of returns."""


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """T steps of E environments under one policy. Never edited after it is collected."""

    transitions: Transitions
    truncated: Bool[Tensor, "T E"]
    sampled_actions: Int64[Tensor, "T E N"] | Float[Tensor, "T E N A"]
    """What the policy drew, unclipped; `transitions` hold what the environment received."""
    log_probs: Float[Tensor, "T E N"]
    """Log-probabilities of the unclipped actions under the policy that took them."""
    task_rewards: Float[Tensor, "T E"]
    """The environment's own reward: sparse unless the task is dense."""
    elapsed: Int64[Tensor, "T E"]
    """Steps of the episode before this one, also those taken in earlier rollouts."""
    episodes: FinishedEpisodes
    facts: Float[Tensor, "T E F"] | None = None
    """Facts of the running episodes after each step."""
    hidden: Float[Tensor, "C E ..."] | None = None
    """The actors' hidden state before the first step of every chunk. None: feed-forward."""

    @property
    def starts(self) -> Bool[Tensor, "T E"]:
        """Steps that start an episode, but for the first: the state before it is already reset."""
        return torch.cat((torch.zeros_like(self.done[:1]), self.done[:-1]))

    @property
    def done(self) -> Bool[Tensor, "T E"]:
        """Where an episode ended, for either reason."""
        return self.transitions.terminated | self.truncated


@dataclass(frozen=True, kw_only=True)
class Rewards:
    """Rewards of some transitions."""

    team: Float[Tensor, "*L"]
    """R, the global reward."""
    local: Float[Tensor, "*L N"] | None = None
    """r_i, one per agent; None where the model does not split the team's reward."""
    are_advantages: bool = False
    """Whether the future is in them already, as in the log-ratio of two policies (`PolicyRatio`):
    they are the advantages of their steps, and no learner estimates those from them."""
    auxiliary: Float[Tensor, "*L"] | None = None
    """A further loss of each step that a model is fitted by (`Tar2Reward`). None: there is none."""

    def unpacked(self, places: Int64[Tensor, "P"], shape: torch.Size) -> "Rewards":
        """Return R and r_i of packed steps (`Transitions.packed`) at their places in `shape`.

        Zero elsewhere.
        """

        def spread(packed: Tensor) -> Tensor:
            rows = packed.new_zeros((shape.numel(), *packed.shape[1:]))
            return rows.index_copy(0, places, packed).unflatten(0, shape)

        local = None if self.local is None else spread(self.local)
        return Rewards(team=spread(self.team), local=local, are_advantages=self.are_advantages)


@dataclass(frozen=True, kw_only=True)
class BatchShares:
    """Weights of one process's means, whose mean over all processes is the mean over all rows."""

    pairs: float
    """Of a mean over answered pairs."""
    returns: float
    """Over episodes whose return is known."""
    episodes: float
    """Over all episodes."""
    steps: float
    """Over sampled steps."""
    agent_steps: float
    """Over sampled steps of the agents alive in them."""


@dataclass(frozen=True, kw_only=True)
class EpisodeBatch:
    """M episodes, K steps of each, their returns, and the answered pairs among them."""

    transitions: Transitions
    """Leading axes (M, K)."""
    step_weights: Float[Tensor, "M K"]
    """Factor of each step in its episode's estimated sum: T/K for a sample, 0 for padding."""
    lengths: Int64[Tensor, "M"]
    """True length of each episode in steps."""
    returns: Float[Tensor, "M"]
    """Return of each episode; NaN where it is unknown."""
    first: Int64[Tensor, "B"]
    """Index into the M episodes."""
    second: Int64[Tensor, "B"]
    labels: Float[Tensor, "B"]
    """P(first preferred): 1 first, 0 second, 0.5 tie. No NaN."""
    return_mean: float = 0.0
    """Mean of the returns of all kept episodes."""
    return_scale: float = 1.0
    """Standard deviation of the returns of all kept episodes."""
    demonstrations: Bool[Tensor, "M"] | None = None
    """Which episodes are demonstrations. None: not known."""
    shares: BatchShares | None = None
    """How means over this batch count among those of other processes. None: there are none."""

    @property
    def is_sampled(self) -> Bool[Tensor, "M K"]:
        """Which steps are samples rather than padding."""
        return self.step_weights > 0

    def counts(self) -> dict[str, int]:
        """Return the number of rows of each mean in `BatchShares`."""
        sampled, alive = self.is_sampled, self.transitions.alive
        agents = self.transitions.obs.shape[-2]
        steps = int(sampled.sum())
        agent_steps = steps * agents
        if alive is not None:
            agent_steps = int((sampled.unsqueeze(-1) & alive).sum())
        return {
            "pairs": len(self.labels),
            "returns": int((~self.returns.isnan()).sum()),
            "episodes": len(self.lengths),
            "steps": steps,
            "agent_steps": agent_steps,
        }


@runtime_checkable
class EpisodeReplay(Protocol):
    """Finished episodes and their steps; every episode has a running number."""

    def available(self, *, held_out: bool = False) -> Int64[Tensor, "M"]:
        """Return the numbers of all episodes still kept, oldest first, of one side of the split."""
        ...

    def return_moments(self) -> tuple[float, float]:
        """Return mean and standard deviation of the returns; a deviation of zero as 1."""
        ...

    def final_states(self, numbers: Int64[Tensor, "M"]) -> Num[Tensor, "M S"]:
        """Return the team's state at the end of each episode."""
        ...

    def steps(self, numbers: Int64[Tensor, "M"], offsets: Int64[Tensor, "M K"]) -> Transitions:
        """Return the transitions of episodes at steps `offsets`, clamped to their last step."""
        ...

    def facts_at(
        self, numbers: Int64[Tensor, "M"], offsets: Int64[Tensor, "M K"]
    ) -> Float[Tensor, "M K F"]:
        """Return the facts after the steps `offsets`, clamped to the last."""
        ...

    def alive_at(
        self, numbers: Int64[Tensor, "M"], offsets: Int64[Tensor, "M K"]
    ) -> Bool[Tensor, "M K N"] | None:
        """Return who was alive in the steps `offsets`, clamped to the last; None: all, always."""
        ...


@dataclass(frozen=True, kw_only=True)
class Episodes:
    """M finished episodes as a labeller sees them."""

    replay: EpisodeReplay
    numbers: Int64[Tensor, "M"]
    """Running number of each episode in its run."""
    returns: Float[Tensor, "M"]
    """Sum of the task rewards."""
    lengths: Int64[Tensor, "M"]
    """Steps."""
    terminated: Bool[Tensor, "M"]
    """Whether the task ended, rather than being interrupted."""
    facts: Float[Tensor, "M F"]
    """Facts of each, in the order of `EnvSpec.facts`."""

    def transitions(self) -> Transitions:
        """Return all steps, (M, L) with L the longest length; later rows repeat the last step."""
        longest = int(self.lengths.max()) if len(self.lengths) else 0
        steps = torch.arange(longest, device=self.lengths.device)
        return self.replay.steps(self.numbers, steps.expand(len(self.numbers), longest))

    def alive(self) -> Bool[Tensor, "M L N"] | None:
        """Return who was alive in each step, as in `transitions`; None if none ever dies."""
        longest = int(self.lengths.max()) if len(self.lengths) else 0
        steps = torch.arange(longest, device=self.lengths.device)
        return self.replay.alive_at(self.numbers, steps.expand(len(self.numbers), longest))

    def facts_at(self, offsets: Int64[Tensor, "M K"]) -> Float[Tensor, "M K F"]:
        """Return the facts after some steps, counted from 0 and clamped to the last."""
        return self.replay.facts_at(self.numbers, offsets)

    def rows(self, index: Int64[Tensor, "B"] | Bool[Tensor, "M"]) -> "Episodes":
        """Return some of these episodes."""
        return Episodes(
            replay=self.replay,
            numbers=self.numbers[index],
            returns=self.returns[index],
            lengths=self.lengths[index],
            terminated=self.terminated[index],
            facts=self.facts[index],
        )

    def __len__(self) -> int:
        return len(self.numbers)


Field = tuple[tuple[int, ...], torch.dtype]
"""Shape behind the leading axes, and dtype, of a field of `Transitions`."""

FINAL_FIELDS = ("obs", "state", "alive")
"""Fields that also say what a step led to, under ``next_`` and the same name."""


def step_fields(spec: EnvSpec) -> dict[str, Field]:
    """Return the fields that one step of an environment fills, by their name in `Transitions`."""
    arrays = {name: STEP_ARRAYS[name] for name in ("obs", "state", "alive", "action_mask")}
    fields: dict[str, Field] = {
        name: (array.shape(spec), getattr(torch, array.dtype_in(spec)))
        for name, array in arrays.items()
        if array.is_given(spec)
    }
    if spec.action_kind == "discrete":
        return fields | {"actions": ((spec.num_agents,), torch.int64)}
    return fields | {"actions": ((spec.num_agents, spec.action_size), torch.float32)}


def allocate(
    fields: Mapping[str, Field], lead: tuple[int, ...], device: torch.device | None = None
) -> dict[str, Tensor]:
    """Return tensors of zeros (True where boolean) with the leading axes `lead`."""
    return {
        name: torch.full((*lead, *shape), dtype == torch.bool, dtype=dtype, device=device)
        for name, (shape, dtype) in fields.items()
    }


def transitions_at(
    rows: dict[str, Tensor],
    now: Int64[Tensor, "M K"],
    following: Int64[Tensor, "M K"],
    is_last: Bool[Tensor, "M K"],
    finals: dict[str, Tensor],
    terminated: Bool[Tensor, "M"],
) -> Transitions:
    """Return the transitions at the rows `now`, which lead to `following` or, at the last, to
    the episode's final observation and state, and to who was alive there."""

    def at(name: str, index: Tensor) -> Tensor:
        return rows[name].index_select(0, index.flatten()).unflatten(0, index.shape)

    def after(name: str) -> Tensor:
        final = finals[name]
        tail = (1,) * (final.ndim - 1)
        return torch.where(is_last.view(*is_last.shape, *tail), final[:, None], at(name, following))

    alive = next_alive = None
    if "alive" in rows:
        alive = at("alive", now)
        next_alive = after("alive")
    return Transitions(
        obs=at("obs", now),
        state=at("state", now),
        actions=at("actions", now),
        next_obs=after("obs"),
        next_state=after("state"),
        terminated=is_last & terminated.unsqueeze(-1),
        alive=alive,
        next_alive=next_alive,
        action_mask=at("action_mask", now) if "action_mask" in rows else None,
    )
