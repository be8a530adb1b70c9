"""A reward stream: one reward signal, its critic, and the advantages they give.

Axes: T time, E environments, N agents, D rows where an episode or the rollout ends; ``*X`` is
nothing for the team's stream and N for the local ones.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from marl.advantages import gae
from marl.config import LearnerConfig
from marl.networks import LocalCritics, TeamCritic
from marl.normalisers import TeamNorm
from marl.types import Rollout


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What the networks read of a rollout, standardised once."""

    obs: Float[Tensor, "T E N I"]
    state: Float[Tensor, "T E S"]
    ends: Int64[Tensor, "D"]
    """Rows of (T * E) whose next row does not continue the episode."""
    end_obs: Float[Tensor, "D N I"]
    """What those steps really led to."""
    end_state: Float[Tensor, "D S"]


@dataclass(frozen=True, kw_only=True)
class Stream:
    """One reward stream of a rollout: what its critic is trained towards."""

    values: Float[Tensor, "T E *X"]
    """Critic outputs in normalised units, before the update."""
    targets: Float[Tensor, "T E *X"]
    """Advantages plus values, in normalised units."""
    advantages: Float[Tensor, "T E *X"]
    """In units of the reward."""
    explained_variance: Tensor


def read_inputs(rollout: Rollout, norm: TeamNorm) -> Inputs:
    """Return a rollout's observations and states as the networks read them."""
    steps = rollout.transitions
    last = rollout.done.clone()
    last[-1] = True
    ends = last.flatten().nonzero().squeeze(-1)
    return Inputs(
        obs=norm.obs(steps.obs),
        state=norm.state(steps.state),
        ends=ends,
        end_obs=norm.obs(steps.next_obs.flatten(0, 1)[ends]),
        end_state=norm.state(steps.next_state.flatten(0, 1)[ends]),
    )


def reward_stream(
    critic: TeamCritic | LocalCritics,
    reward: Float[Tensor, "T E *X"],
    inputs: Inputs,
    rollout: Rollout,
    config: LearnerConfig,
    *,
    per_agent: bool,
) -> Stream:
    """Return values, advantages and targets, and take the targets into the value normaliser.

    The next value is the next row's, except where an episode or the rollout ends: there it
    belongs to the state the step really led to. An absent agent earns nothing and its state is
    worth nothing.
    """
    steps = rollout.transitions
    present = steps.alive if per_agent else None
    outputs = critic(inputs.obs, inputs.state)
    values = critic.value_norm.denormalise(outputs)
    end_values = critic.value_norm.denormalise(critic(inputs.end_obs, inputs.end_state))
    if present is not None and steps.next_alive is not None:
        reward, values = reward * present, values * present
        end_values = end_values * steps.next_alive.flatten(0, 1)[inputs.ends]
    next_values = torch.roll(values, -1, dims=0)
    next_values.flatten(0, 1)[inputs.ends] = end_values
    advantages = gae(
        reward,
        values,
        next_values,
        steps.terminated,
        rollout.done,
        config.gamma,
        config.gae_lambda,
    )
    targets = advantages + values
    critic.value_norm.update(targets, present)
    return Stream(
        values=outputs,
        targets=critic.value_norm.normalise(targets),
        advantages=advantages,
        explained_variance=explained_variance(advantages, targets, present),
    )


def explained_variance(
    advantages: Float[Tensor, "*L"],
    targets: Float[Tensor, "*L"],
    present: Bool[Tensor, "*L"] | None,
) -> Tensor:
    """Return 1 - Var(target - value) / Var(target) over the rows that are present."""
    if present is not None:
        advantages, targets = advantages[present], targets[present]
    return 1.0 - advantages.var() / targets.var().clamp(min=1e-8)
