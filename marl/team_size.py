"""A team's policy for a team of another size, where every agent sees and does as much.

Agent i of the new team acts as agent i modulo n did in the old one of n agents: a team of twelve is
two teams of six, side by side. Where n does not divide the new number, agents are counted twice to
fill the last team up, and what those do is dropped.

Axes: E environments, G old teams side by side, n agents of the old team, N of the new one; O, A
features; ``*L`` any leading axes.
"""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from envs import EnvSpec
from marl.config import Config, ConfigError
from marl.contrast import GuidedActor, SteeredActor, TellsDistribution, telling
from marl.data.types import Transitions
from marl.learners.distributions import Categorical, Distribution, Gaussian
from marl.policy import Policy


def fold(x: Tensor, size: int, axis: int) -> Tensor:
    """Return (..., N, ...) as (..., G, n, ...), with n = `size` agents along the axis."""
    axis = axis % x.ndim
    count = x.shape[axis]
    slots = torch.arange(-(-count // size) * size, device=x.device) % count
    return x.index_select(axis, slots).unflatten(axis, (-1, size))


def unfold(x: Tensor, count: int, axis: int) -> Tensor:
    """Return (..., G, n, ...), of which `axis` is that of G, as (..., N, ...), N = `count`."""
    axis = axis % x.ndim
    return x.flatten(axis, axis + 1).narrow(axis, 0, count)


def folded_steps(steps: Transitions, size: int) -> Transitions:
    """Return transitions (*L) of N agents as those of teams side by side, (*L, G) of n agents.

    What belongs to the whole team, such as its state, is that of each.
    """
    at = {"obs": -2, "next_obs": -2, "action_mask": -2, "alive": -1, "next_alive": -1}
    at["actions"] = -2 if steps.actions.is_floating_point() else -1
    parts: dict[str, Any] = {
        name: fold(getattr(steps, name), size, axis)
        for name, axis in at.items()
        if getattr(steps, name) is not None
    }
    lead = parts["obs"].shape[:-2]
    for name in ("state", "next_state"):
        parts[name] = getattr(steps, name).unsqueeze(-2).expand(*lead, -1)
    parts["terminated"] = steps.terminated.unsqueeze(-1).expand(lead)
    if steps.history is not None:
        starts = steps.history.starts.unsqueeze(-1).expand(lead)
        parts["history"] = dataclasses.replace(steps.history, starts=starts)
    return dataclasses.replace(steps, **parts)


class ResizedActor(SteeredActor):
    """The policy of n agents, acting for N."""

    def __init__(self, actor: TellsDistribution, size: int, count: int) -> None:
        """`actor` is of `size` agents, and acts for `count`."""
        super().__init__(actor)
        self.size = size
        self.count = count
        self.teams = -(-count // size)

    def initial_hidden(self, num_envs: int) -> Float[Tensor, "E F"] | None:
        """Return the hidden state at the start of an episode: that of every team side by side."""
        hidden = self.tuned.initial_hidden(num_envs * self.teams)
        return None if hidden is None else hidden.reshape(num_envs, -1)

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Return what draws the actions, (*shape, N, A)."""
        drawn = self.tuned.noise((*shape, self.teams), generator)
        return unfold(drawn, self.count, len(shape))

    def step_distribution(
        self,
        obs: Float[Tensor, "*L N O"],
        hidden: Tensor | None = None,
        mask: Bool[Tensor, "*L N A"] | None = None,
    ) -> tuple[Distribution, Tensor | None]:
        """Return the distribution of one step's actions, and the next hidden state."""
        lead = obs.shape[:-2]
        seen = fold(obs, self.size, -2).flatten(0, len(lead))
        legal = None if mask is None else fold(mask, self.size, -2).flatten(0, len(lead))
        zero = self.tuned.initial_hidden(len(seen))
        own = None if zero is None or hidden is None else hidden.reshape(zero.shape)
        policy, after = self.tuned.step_distribution(seen, own, legal)
        after = None if after is None else after.reshape(*lead, -1)

        def mine(x: Tensor) -> Tensor:
            return unfold(x.unflatten(0, (*lead, self.teams)), self.count, len(lead))

        if isinstance(policy, Categorical):
            known = policy.legal
            known = None if known is None else mine(known.expand(policy.logits.shape))
            return Categorical(mine(policy.logits), known), after
        assert isinstance(policy, Gaussian), "composite actions were refused"
        agents = torch.arange(self.count, device=obs.device) % self.size
        present = None if policy.present is None else policy.present[agents]
        return Gaussian(mine(policy.mean), policy.log_std[agents], present), after


def resized(
    policy: Policy, config: Config, spec: EnvSpec, setting: str, named_in: Path | str | None = None
) -> Policy:
    """Return a policy that plays in the environment `spec` of the settings `config`.

    These come from `named_in`, a run or a file (None: the policy's own run), which must be trusted
    with the environment.
    Raises `ConfigError`, which `setting` begins, where agents there see or do something of another
    size. A policy of as many agents is the same one, in another environment.
    """
    check_agents_alike(policy.spec, spec, setting, policy.folder)
    actor, size, count = policy.actor, policy.spec.num_agents, spec.num_agents
    if size != count:
        if spec.action_kind == "composite":
            raise ConfigError(
                f"{setting}: a policy whose actions have several parts plays for its own number of "
                f"agents, {size}, and not for {count}"
            )
        if isinstance(actor, GuidedActor) and spec.action_kind == "continuous":
            raise ConfigError(
                f"{setting}: a guided policy of continuous actions plays for its own number of "
                f"agents, {size}, and not for {count}"
            )
        actor = ResizedActor(telling(policy, setting), size, count)
    return policy.acting(actor, config, spec, named_in)


def check_agents_alike(theirs: EnvSpec, ours: EnvSpec, setting: str, folder: object) -> None:
    """Raise `ConfigError` unless each of our agents sees and does as much as its like of theirs.

    Its like is the agent of its number modulo the size of their team.
    """
    places = [i % theirs.num_agents for i in range(ours.num_agents)]
    there: dict[str, object] = {
        "kind of action": theirs.action_kind,
        "observation features of each": [theirs.obs_sizes[i] for i in places],
        "actions of each": [(theirs.action_parts or theirs.action_sizes)[i] for i in places],
        "padded to": (theirs.obs_size, theirs.action_size),
    }
    here: dict[str, object] = {
        "kind of action": ours.action_kind,
        "observation features of each": list(ours.obs_sizes),
        "actions of each": list(ours.action_parts or ours.action_sizes),
        "padded to": (ours.obs_size, ours.action_size),
    }
    if apart := [name for name in there if there[name] != here[name]]:
        raise ConfigError(
            f"{setting}: the policy of {folder} was trained on {theirs.name} ("
            + ", ".join(f"{name}: {there[name]}" for name in apart)
            + f"), and this is {ours.name} ("
            + ", ".join(f"{name}: {here[name]}" for name in apart)
            + "); the number of agents may differ, what each of them sees and does may not"
        )
