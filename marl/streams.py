"""A reward stream: one reward signal, its critic, and the advantages they give.

Axes: T time, E environments, N agents, D rows where an episode or the rollout ends, C chunks,
H units of memory; ``*X`` is nothing for the team's stream and N for the local ones, and M the
memories of a critic: one or N.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from marl.advantages import gae
from marl.config import LearnerConfig
from marl.config.learning import Absence
from marl.critics import LocalCritics, TeamCritic
from marl.memory import Past
from marl.normalisers import TeamNorm
from marl.types import Rollout


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What the networks read of a rollout, standardised once."""

    obs: Float[Tensor, "T E N I"]
    state: Float[Tensor, "T E S"]
    starts: Bool[Tensor, "T E"]
    """See `Rollout.starts`."""
    ends: Int64[Tensor, "D"]
    """Rows of (T * E) whose next row does not continue the episode."""
    end_obs: Float[Tensor, "D N I"]
    """What those steps really led to."""
    end_state: Float[Tensor, "D S"]


@dataclass(frozen=True, kw_only=True)
class Values:
    """What a critic says of a rollout, in normalised units, and what it remembers."""

    steps: Float[Tensor, "T E *X"]
    ends: Float[Tensor, "D *X"]
    """Of what the steps in `Inputs.ends` led to."""
    chunk_memory: Float[Tensor, "C E M H"] | None = None
    """Memory before the first step of every chunk. None: no memory."""
    next_memory: Float[Tensor, "E M H"] | None = None
    """Memory before the first step of the next rollout."""


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
    chunk_memory: Float[Tensor, "C E M H"] | None
    """See `Values`."""
    next_memory: Float[Tensor, "E M H"] | None


def read_inputs(rollout: Rollout, norm: TeamNorm) -> Inputs:
    """Return a rollout's observations and states as the networks read them."""
    steps = rollout.transitions
    last = rollout.done.clone()
    last[-1] = True
    ends = last.flatten().nonzero().squeeze(-1)
    return Inputs(
        obs=norm.obs(steps.obs),
        state=norm.state(steps.state),
        starts=rollout.starts,
        ends=ends,
        end_obs=norm.obs(steps.next_obs.flatten(0, 1)[ends]),
        end_state=norm.state(steps.next_state.flatten(0, 1)[ends]),
    )


def local_inputs(inputs: Inputs, rollout: Rollout, norm: TeamNorm, absence: Absence) -> Inputs:
    """Return what the local critics read: an agent that is absent sees zeros.

    Where its stream goes on in its absence, so that nothing depends on what an environment shows
    to the dead.
    """
    steps = rollout.transitions
    if absence == "ends" or steps.alive is None or steps.next_alive is None:
        return inputs
    obs = steps.obs * steps.alive.unsqueeze(-1)
    next_obs = steps.next_obs * steps.next_alive.unsqueeze(-1)
    return replace(inputs, obs=norm.obs(obs), end_obs=norm.obs(next_obs.flatten(0, 1)[inputs.ends]))


def read_values(
    critic: TeamCritic | LocalCritics,
    inputs: Inputs,
    rollout: Rollout,
    memory: Float[Tensor, "E M H"] | None,
    chunk_length: int,
) -> Values:
    """Return a critic's values of a rollout.

    A critic with memory starts from `memory`, the one it had at the end of the last rollout: it
    is older than the critic by an update, and not computed anew from the episode's start.
    """
    if memory is None:
        return Values(
            steps=critic(inputs.obs, inputs.state), ends=critic(inputs.end_obs, inputs.end_state)
        )
    steps, memories = critic.unroll(
        Past(memory=memory, starts=inputs.starts), inputs.obs, inputs.state
    )
    at_ends = memories.flatten(0, 1)[inputs.ends]
    going_on = torch.zeros((1, len(at_ends)), dtype=torch.bool, device=at_ends.device)
    ends, _ = critic.unroll(
        Past(memory=at_ends, starts=going_on),
        inputs.end_obs.unsqueeze(0),
        inputs.end_state.unsqueeze(0),
    )
    before = torch.cat((memory.unsqueeze(0), memories[chunk_length - 1 : -1 : chunk_length]))
    forgotten = rollout.done.view(*rollout.done.shape, 1, 1)
    before[1:].masked_fill_(forgotten[chunk_length - 1 : -1 : chunk_length], 0.0)
    return Values(
        steps=steps,
        ends=ends.squeeze(0),
        chunk_memory=before,
        next_memory=memories[-1].masked_fill(forgotten[-1], 0.0),
    )


def reward_stream(
    critic: TeamCritic | LocalCritics,
    reward: Float[Tensor, "T E *X"],
    inputs: Inputs,
    rollout: Rollout,
    config: LearnerConfig,
    *,
    per_agent: bool,
    memory: Float[Tensor, "E M H"] | None = None,
) -> Stream:
    """Return values, advantages and targets, and take the targets into the value normaliser.

    The next value is the next row's, except where an episode or the rollout ends: there it
    belongs to the state the step really led to.

    With ``absence = "ends"`` an absent agent earns nothing and its state is worth nothing. So its
    own stream ends with the last step before its absence, for lambda > 0 as for lambda = 0, also if
    it returns later: that is a new stream, whose reward no action of the old one is credited with.
    What its actions earn the team after it left, the team's stream credits them with, which no
    absence ends. Otherwise an absent agent goes on earning (see `with_absent`), its state has a
    value, and its stream ends with the episode only.
    """
    steps = rollout.transitions
    present = steps.alive if per_agent else None
    if present is not None and config.absence != "ends":
        reward, present = with_absent(reward, present, config.absence), None
    read = read_values(critic, inputs, rollout, memory, config.chunk_length)
    values = critic.value_norm.denormalise(read.steps)
    end_values = critic.value_norm.denormalise(read.ends)
    stream_ends = rollout.done
    if per_agent:
        stream_ends = rollout.done.unsqueeze(-1).expand_as(values)
    if present is not None and steps.next_alive is not None:
        reward, values = reward * present, values * present
        end_values = end_values * steps.next_alive.flatten(0, 1)[inputs.ends]
        stream_ends = stream_ends | ~steps.next_alive
    next_values = torch.roll(values, -1, dims=0)
    next_values.flatten(0, 1)[inputs.ends] = end_values
    advantages = gae(
        reward,
        values,
        next_values,
        steps.terminated,
        stream_ends,
        config.gamma,
        config.gae_lambda,
    )
    targets = advantages + values
    critic.value_norm.update(targets, present)
    return Stream(
        values=read.steps,
        targets=critic.value_norm.normalise(targets),
        advantages=advantages,
        explained_variance=explained_variance(advantages, targets, present),
        chunk_memory=read.chunk_memory,
        next_memory=read.next_memory,
    )


def with_absent(
    reward: Float[Tensor, "T E N"], present: Bool[Tensor, "T E N"], rule: Absence
) -> Float[Tensor, "T E N"]:
    """Return local rewards in which the absent earn what `LearnerConfig.absence` says."""
    earned = reward.where(present, torch.zeros_like(reward))
    if rule == "ends":
        return earned
    total = earned.sum(dim=-1, keepdim=True)
    share = total / reward.shape[-1]
    mean = total / present.sum(dim=-1, keepdim=True).clamp(min=1)
    if rule == "centred":
        return (reward - (mean - share)).where(present, share)
    return reward.where(present, mean if rule == "alive_mean" else share)


def explained_variance(
    advantages: Float[Tensor, "*L"],
    targets: Float[Tensor, "*L"],
    present: Bool[Tensor, "*L"] | None,
) -> Tensor:
    """Return 1 - Var(target - value) / Var(target) over the rows that are present."""
    if present is not None:
        advantages, targets = advantages[present], targets[present]
    return 1.0 - advantages.var() / targets.var().clamp(min=1e-8)
