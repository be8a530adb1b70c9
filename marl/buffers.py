"""The preallocated tensors of a rollout.

Axes: T time, E environments, N agents; O, S, A features, F facts.
"""

import torch
from torch import Tensor

from envs import EnvSpec


def allocate(spec: EnvSpec, num_steps: int, hidden: bool) -> dict[str, Tensor]:
    """Return zeroed buffers for one rollout, in the shapes of `Transitions`."""
    lead = (num_steps, spec.num_envs)
    team = (*lead, spec.num_agents)
    buffers = {
        "obs": torch.zeros(*team, spec.obs_size),
        "state": torch.zeros(*lead, spec.state_size),
        "next_obs": torch.zeros(*team, spec.obs_size),
        "next_state": torch.zeros(*lead, spec.state_size),
        "rewards": torch.zeros(lead),
        "terminated": torch.zeros(lead, dtype=torch.bool),
        "truncated": torch.zeros(lead, dtype=torch.bool),
        "actions": (
            torch.zeros(team, dtype=torch.int64)
            if spec.action_kind == "discrete"
            else torch.zeros(*team, spec.action_size)
        ),
    }
    if spec.masks_actions:
        buffers["action_mask"] = torch.ones(*team, spec.action_size, dtype=torch.bool)
    if spec.agents_die:
        buffers["alive"] = torch.ones(team, dtype=torch.bool)
        buffers["next_alive"] = torch.ones(team, dtype=torch.bool)
    if spec.facts:
        buffers["facts"] = torch.zeros(*lead, len(spec.facts))
    if hidden:
        buffers["hidden_rewards"] = torch.zeros(lead)
    return buffers
