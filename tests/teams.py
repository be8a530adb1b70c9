"""Untrained teams whose agents act differently, and what they observe."""

from typing import Any, Literal

import numpy as np
import torch

import marl
from envs import make_env
from marl.config import Config, EnvConfig, NetworkConfig
from marl.learners.actors import make_actor
from marl.nn.normalisation import TeamNorm
from tests.reward_models import generator

Recurrence = Literal["none", "gru"]


def team(name: str, seed: int, recurrence: Recurrence = "none") -> marl.Policy:
    """Return a policy whose outputs differ from agent to agent and from seed to seed."""
    config = Config(
        env=EnvConfig(name=name), network=NetworkConfig(hidden_sizes=(8,), recurrence=recurrence)
    )
    spec = make_env(name, 1).spec
    actor = make_actor(spec, config.network, TeamNorm(spec, enabled=True), generator(seed))
    noise = generator(seed + 100)
    with torch.no_grad():
        for parameter in actor.body.parameters():
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=noise))
    return marl.Policy(config=config, spec=spec, steps=0, actor=actor, folder=f"team_{seed}")


def observations(policy: marl.Policy, count: int, seed: int = 0) -> np.ndarray[Any, Any]:
    size = (count, policy.spec.num_agents, policy.spec.obs_size)
    return np.random.default_rng(seed).normal(size=size).astype(np.float32)
