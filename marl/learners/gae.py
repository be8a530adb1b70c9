"""Advantages: GAE of one reward stream, and the streams' mixture that the actors maximise.

A reward stream is one reward signal with its critic: the team's, or the agents' local ones.

Axes: T time, E environments, N agents, D rows where an episode or the rollout ends, C chunks, H
hidden units; ``*X`` is nothing for the team's stream and N for the local ones, and M the hidden
states of a critic: one or N.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int64, Num
from torch import Tensor

from marl.config import LearnerConfig
from marl.config.schema import Absence
from marl.data.types import Rollout
from marl.learners.critics import AgentCritics, TeamCritic, with_time
from marl.nn.normalisation import TeamNorm
from marl.utils.ranks import SINGLE, Ranks, merge_moments

_SMALLEST = 1e-30
"""Least deviation that is divided by, below any unit: equal advantages become zero."""


def gae(
    rewards: Float[Tensor, "T E *X"],
    values: Float[Tensor, "T E *X"],
    next_values: Float[Tensor, "T E *X"],
    terminated: Bool[Tensor, "T E"],
    cuts: Bool[Tensor, "T E *X"],
    gamma: float,
    gae_lambda: float,
) -> Float[Tensor, "T E *X"]:
    """Return generalised advantage estimates (Schulman et al. 2016, eq. 16).

    `next_values` belong to the state a step really led to, so a truncated episode bootstraps
    from its true final state and a terminated one from zero. Traces are cut after the steps
    `cuts`, at the latest where an episode ends. The recursion

        A_t = delta_t + c_t A_{t+1},   c_t = gamma lambda (1 - cuts_t)

    is solved in log2(T) vectorised rounds: after round k, A_t sums the 2^k steps from t.
    """
    shape = (*terminated.shape, *([1] * (rewards.ndim - 2)))
    alive = (~terminated).view(shape).to(rewards.dtype)
    advantages = rewards + gamma * alive * next_values - values
    carry = gamma * gae_lambda * (~cuts).to(rewards.dtype)
    steps = rewards.shape[0]
    shift = 1
    while shift < steps:
        advantages = torch.cat(
            (
                advantages[:-shift] + carry[:-shift] * advantages[shift:],
                advantages[-shift:],
            )
        )
        carry = torch.cat((carry[:-shift] * carry[shift:], torch.zeros_like(carry[-shift:])))
        shift *= 2
    return advantages


def standardise(
    advantages: Float[Tensor, "*L"],
    present: Bool[Tensor, "*L"] | None = None,
    ranks: Ranks = SINGLE,
) -> Float[Tensor, "*L"]:
    """Return advantages with mean 0 and deviation 1 over all processes' rows that are present.

    Rows that are not present come back as zero.
    """
    if present is None:
        count = torch.full((), advantages.numel(), device=advantages.device)
        mean, std = advantages.mean(), advantages.std(correction=0)
    else:
        count, zero = present.sum(), torch.zeros_like(advantages)
        mean = advantages.where(present, zero).sum() / count.clamp(min=1)
        centred = (advantages - mean).where(present, zero)
        std = ((centred**2).sum() / count.clamp(min=1)).sqrt()
    if ranks.size > 1:
        var = std.to(torch.float64) ** 2
        _, mean, var = merge_moments(ranks, count, mean, var, "advantages")
        std = var.sqrt().to(std.dtype)
    standardised = (advantages - mean) / std.clamp(min=_SMALLEST)
    return standardised if present is None else standardised.where(present, zero)


def dual_advantages(
    team: Float[Tensor, "T E *X"],
    local: Float[Tensor, "T E N"] | None,
    alive: Bool[Tensor, "T E N"] | None,
    num_agents: int,
    local_weight: float,
    ranks: Ranks = SINGLE,
) -> Float[Tensor, "T E N"]:
    """Return omega * norm(A_i) + (1 - omega) * norm(A), the actors' advantage (IMAP).

    Without local advantages every agent gets norm(A). A stream of weight zero has no effect. The
    team's advantage may be one for all or, with independent critics, one of every agent.
    """
    if team.ndim == 2:
        shared = standardise(team, None, ranks).unsqueeze(-1).expand(*team.shape, num_agents)
    else:
        shared = standardise(team, alive, ranks)
    if local is None or local_weight == 0.0:
        return shared
    own = standardise(local, alive, ranks)
    return own if local_weight == 1.0 else local_weight * own + (1.0 - local_weight) * shared


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What the networks read of a rollout, standardised once for all gradient steps; pictures as
    they are."""

    obs: Num[Tensor, "T E N I"]
    state: Num[Tensor, "T E S"]
    starts: Bool[Tensor, "T E"]
    """See `Rollout.starts`."""
    ends: Int64[Tensor, "D"]
    """Rows of (T * E) whose next row does not continue the episode."""
    end_obs: Num[Tensor, "D N I"]
    """What those steps really led to."""
    end_state: Num[Tensor, "D S"]


@dataclass(frozen=True, kw_only=True)
class Values:
    """A critic's values of a rollout, in normalised units, and its hidden states."""

    steps: Float[Tensor, "T E *X"]
    ends: Float[Tensor, "D *X"]
    """Of what the steps in `Inputs.ends` led to."""
    chunk_hidden: Float[Tensor, "C E M H"] | None = None
    """Hidden state after the last step before every chunk; where an episode starts it is reset in
    the unit (`AgentGRU`). None: feed-forward."""
    next_hidden: Float[Tensor, "E M H"] | None = None
    """Hidden state before the first step of the next rollout."""


@dataclass(frozen=True, kw_only=True)
class Stream:
    """One reward stream of a rollout: what its critic reads, and is trained towards."""

    inputs: Inputs
    present: Bool[Tensor, "T E N"] | None
    """Rows that count. None: all."""
    values: Float[Tensor, "T E *X"]
    """Critic outputs in normalised units, before the update."""
    targets: Float[Tensor, "T E *X"]
    """Advantages plus values, in normalised units."""
    advantages: Float[Tensor, "T E *X"]
    """In units of the reward."""
    explained_variance: Tensor
    chunk_hidden: Float[Tensor, "C E M H"] | None
    """See `Values`."""
    next_hidden: Float[Tensor, "E M H"] | None


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


def without_absent(inputs: Inputs, rollout: Rollout, norm: TeamNorm) -> Inputs:
    """Return inputs in which an absent agent sees zeros.

    A critic that also values dead agents then does not depend on what the environment shows them.
    """
    steps = rollout.transitions
    if steps.alive is None or steps.next_alive is None:
        return inputs
    obs = steps.obs * steps.alive.unsqueeze(-1)
    next_obs = steps.next_obs * steps.next_alive.unsqueeze(-1)
    return replace(inputs, obs=norm.obs(obs), end_obs=norm.obs(next_obs.flatten(0, 1)[inputs.ends]))


def timed(inputs: Inputs, rollout: Rollout, max_steps: int, *, in_state: bool) -> Inputs:
    """Return inputs that tell the time, behind the state or else behind the observations."""
    name = "state" if in_state else "obs"
    later = rollout.elapsed.flatten()[inputs.ends] + 1
    told = with_time(getattr(inputs, name), rollout.elapsed, max_steps)
    return replace(
        inputs,
        **{name: told, f"end_{name}": with_time(getattr(inputs, f"end_{name}"), later, max_steps)},
    )


def read_values(
    critic: TeamCritic | AgentCritics,
    inputs: Inputs,
    rollout: Rollout,
    hidden: Float[Tensor, "E M H"] | None,
    chunk_length: int,
) -> Values:
    """Return a critic's values of a rollout.

    A recurrent critic starts from `hidden`, its state after the last rollout: older than the critic
    by an update, and not computed anew from the episode's start.
    """
    if hidden is None:
        return Values(
            steps=critic(inputs.obs, inputs.state), ends=critic(inputs.end_obs, inputs.end_state)
        )
    steps, hidden_states = critic.unroll(inputs.obs, inputs.state, hidden, inputs.starts)
    at_ends = hidden_states.flatten(0, 1)[inputs.ends]
    no_starts = torch.zeros((1, len(at_ends)), dtype=torch.bool, device=at_ends.device)
    ends, _ = critic.unroll(
        inputs.end_obs.unsqueeze(0), inputs.end_state.unsqueeze(0), at_ends, no_starts
    )
    before = torch.cat((hidden.unsqueeze(0), hidden_states[chunk_length - 1 : -1 : chunk_length]))
    return Values(
        steps=steps,
        ends=ends.squeeze(0),
        chunk_hidden=before,
        next_hidden=hidden_states[-1].masked_fill(rollout.done[-1].view(-1, 1, 1), 0.0),
    )


def reward_stream(
    critic: TeamCritic | AgentCritics,
    reward: Float[Tensor, "T E *X"],
    inputs: Inputs,
    rollout: Rollout,
    config: LearnerConfig,
    *,
    present: Bool[Tensor, "T E N"] | None = None,
    hidden: Float[Tensor, "E M H"] | None = None,
    ranks: Ranks = SINGLE,
) -> Stream:
    """Return values, advantages and targets, and take the targets into the value normaliser.

    The next value is the next row's, except where an episode or the rollout ends: there it
    belongs to the state the step really led to.

    Where agents are not `present` they earn nothing and their state is worth nothing. So an agent's
    traces are cut after the last step before its absence, for lambda > 0 as for lambda = 0, and
    also if it returns later: no action before is credited with a reward after. None: all are.
    """
    steps = rollout.transitions
    read = read_values(critic, inputs, rollout, hidden, config.chunk_steps)
    values = critic.value_norm.denormalise(read.steps)
    end_values = critic.value_norm.denormalise(read.ends)
    cuts = rollout.done.view(*rollout.done.shape, *[1] * (reward.ndim - 2)).expand_as(values)
    if present is not None and steps.next_alive is not None:
        reward, values = reward * present, values * present
        end_values = end_values * steps.next_alive.flatten(0, 1)[inputs.ends]
        cuts = cuts | ~steps.next_alive
    next_values = torch.roll(values, -1, dims=0)
    next_values.flatten(0, 1)[inputs.ends] = end_values
    advantages = gae(
        reward, values, next_values, steps.terminated, cuts, config.gamma, config.gae_lambda
    )
    targets = advantages + values
    critic.value_norm.update(targets, present, ranks)
    return Stream(
        inputs=inputs,
        present=present,
        values=read.steps,
        targets=critic.value_norm.normalise(targets),
        advantages=advantages,
        explained_variance=explained_variance(advantages, targets, present),
        chunk_hidden=read.chunk_hidden,
        next_hidden=read.next_hidden,
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
    return 1.0 - advantages.var() / targets.var().clamp(min=_SMALLEST)
