"""The learner of runs whose policy is its own reward model (``reward.source = "policy"``).

Axes: T time, E environments, N agents.
"""

from typing import Any

import torch

from envs import EnvSpec
from marl.config import LearnerConfig, NetworkConfig
from marl.data.types import Rewards, Rollout
from marl.learners.actors import CategoricalActor, GaussianActor, make_actor
from marl.nn.normalisation import TeamNorm
from marl.utils.ranks import SINGLE, Ranks


class DirectLearner:
    """An actor without critics; `marl.rewards.RatioLearner` trains it by the loss of the reward."""

    def __init__(
        self,
        spec: EnvSpec,
        network: NetworkConfig,
        learner: LearnerConfig,
        norm: TeamNorm,
        *,
        local_stream: bool,
        threads: int,
        generator: torch.Generator,
        device: torch.device,
        ranks: Ranks = SINGLE,
    ) -> None:
        seed = torch.randint(2**31, (), generator=generator, device=generator.device)
        cpu = torch.Generator().manual_seed(int(seed))
        self.actor = self.make_actor(spec, network, norm, cpu).to(device)
        ranks.broadcast_(self.actor)

    @staticmethod
    def make_actor(
        spec: EnvSpec, network: NetworkConfig, norm: TeamNorm, generator: torch.Generator
    ) -> CategoricalActor | GaussianActor:
        """Return a new actor."""
        return make_actor(spec, network, norm, generator)

    def update(self, rollout: Rollout, rewards: Rewards, remaining: float) -> dict[str, float]:
        """Return no metrics: the policy is improved already."""
        return {}

    def advance(self, rollout: Rollout) -> None:
        """Do nothing: no hidden state but the actor's, which the collector carries on."""

    def state_dict(self) -> dict[str, Any]:
        """Return the actor."""
        return {"actor": self.actor.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self.actor.load_state_dict(state["actor"])
