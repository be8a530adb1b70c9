"""Data that crosses modules.

Axes: T time, E environments, N agents, M episodes, K sampled steps, B pairs; O observation,
S state, A action features, F facts, C chunks, H units of memory. ``*L`` stands for any leading
axes: (T, E) in a rollout, (M, K) in a batch of episodes.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class History:
    """Which steps follow which, for a reward model that remembers the episode."""

    starts: Bool[Tensor, "*L"]
    """Steps at which an episode starts: nothing of what came before is remembered."""
    time_axis: int
    """Along which steps follow each other: 0 in a rollout (T, E), 1 in a batch (M, K)."""
    memory: Mapping[str, Tensor] | None = None
    """What each network remembered before the first steps, (E, N, H). None: nothing."""


@dataclass(frozen=True, kw_only=True)
class Transitions:
    """Steps as a reward model sees them: no reward field, so none can leak into what it learns."""

    obs: Float[Tensor, "*L N O"]
    state: Float[Tensor, "*L S"]
    actions: Int64[Tensor, "*L N"] | Float[Tensor, "*L N A"]
    next_obs: Float[Tensor, "*L N O"]
    """What the step led to; at an episode's end the real final observation, never the reset."""
    next_state: Float[Tensor, "*L S"]
    terminated: Bool[Tensor, "*L"]
    alive: Bool[Tensor, "*L N"] | None = None
    """Agents that acted in this step. None: all."""
    next_alive: Bool[Tensor, "*L N"] | None = None
    """Agents that go on after it; at an episode's end as `EnvStep.final_alive` says. None: all."""
    action_mask: Bool[Tensor, "*L N A"] | None = None
    """Legal actions. None: all."""
    history: History | None = None
    """Given to a reward model with memory; for others every step stands by itself."""


@dataclass(frozen=True, kw_only=True)
class FinishedEpisodes:
    """B episodes that ended within a rollout, ordered by their end."""

    end_time: Int64[Tensor, "B"]
    """Index in the rollout of the last step."""
    env: Int64[Tensor, "B"]
    lengths: Int64[Tensor, "B"]
    """Steps, also those taken in earlier rollouts."""
    returns: Float[Tensor, "B"]
    """Sum of the task rewards, revealed by now."""
    terminated: Bool[Tensor, "B"]
    facts: Float[Tensor, "B F"] | None = None
    """What the environment tells about each, in the order of `EnvSpec.facts`."""


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """T steps of E copies under one policy. Never edited after it is collected."""

    transitions: Transitions
    truncated: Bool[Tensor, "T E"]
    log_probs: Float[Tensor, "T E N"]
    """Log-probabilities of the unclipped actions under the policy that took them."""
    task_rewards: Float[Tensor, "T E"]
    """The environment's own reward: sparse unless the task is dense."""
    episodes: FinishedEpisodes
    facts: Float[Tensor, "T E F"] | None = None
    """What is known of each copy's episode after each step."""
    memory: Float[Tensor, "C E N H"] | None = None
    """What the actors remembered before the first step of every chunk. None: no memory."""

    @property
    def starts(self) -> Bool[Tensor, "T E"]:
        """Steps that start an episode, but for the first: memory before it is already reset."""
        return torch.cat((torch.zeros_like(self.done[:1]), self.done[:-1]))

    @property
    def done(self) -> Bool[Tensor, "T E"]:
        """Where an episode ended, for either reason."""
        return self.transitions.terminated | self.truncated


@dataclass(frozen=True, kw_only=True)
class Rewards:
    """What a reward model makes of some transitions."""

    team: Float[Tensor, "*L"]
    """R, the global reward."""
    local: Float[Tensor, "*L N"] | None = None
    """r_i, one per agent; None where the model does not split the team's reward."""


@dataclass(frozen=True, kw_only=True)
class LabelledSegments:
    """M episodes, K steps of each, and the answered pairs among them."""

    transitions: Transitions
    """Leading axes (M, K)."""
    step_weights: Float[Tensor, "M K"]
    """Factor of each step in its episode's estimated sum: T/K for a sample, 0 for padding."""
    lengths: Int64[Tensor, "M"]
    """True length of each episode in steps."""
    first: Int64[Tensor, "B"]
    """Index into the M episodes."""
    second: Int64[Tensor, "B"]
    labels: Float[Tensor, "B"]
    """P(first preferred): 1 first, 0 second, 0.5 tie. No NaN."""
