"""A learner that is not PPO: REINFORCE (Williams 1992) with linear softmax policies.

Axes: T time, E environments, N agents, O observation features, A actions.
"""

from typing import Any

import torch
from torch import Tensor, nn

from envs import EnvSpec
from marl.config import LearnerConfig, NetworkConfig
from marl.data.types import Rewards, Rollout
from marl.nn.normalisation import TeamNorm


class SoftmaxActor(nn.Module):
    """Logits that are linear in what each agent sees, with weights of its own."""

    def __init__(self, spec: EnvSpec, norm: TeamNorm) -> None:
        super().__init__()
        self.norm = norm
        size = (spec.num_agents, spec.action_size)
        self.weight = nn.Parameter(torch.zeros(*size, spec.obs_size))
        self.bias = nn.Parameter(torch.zeros(size))

    def initial_hidden(self, num_envs: int) -> None:
        return None

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        return torch.rand((*shape, *self.bias.shape), generator=generator)

    def log_probs(self, obs: Tensor, mask: Tensor | None) -> Tensor:
        logits = torch.einsum("...no,nao->...na", self.norm.obs(obs), self.weight) + self.bias
        return (logits if mask is None else logits.masked_fill(~mask, -1e9)).log_softmax(dim=-1)

    def act(
        self,
        obs: Tensor,
        hidden: Tensor | None = None,
        mask: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, None]:
        log_probs = self.log_probs(obs, mask)
        scores = log_probs if noise is None else log_probs - (-noise.log()).log()
        actions = scores.argmax(dim=-1)
        return actions, log_probs.gather(-1, actions.unsqueeze(-1)).squeeze(-1), None

    def log_prob(self, obs: Tensor, actions: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.log_probs(obs, mask).gather(-1, actions.unsqueeze(-1)).squeeze(-1)


class Reinforce:
    """One gradient step a rollout, on log-probabilities times standardised returns to go."""

    def __init__(
        self,
        spec: EnvSpec,
        network: NetworkConfig,
        learner: LearnerConfig,
        norm: TeamNorm,
        *,
        generator: torch.Generator,
        device: torch.device,
        **_: Any,
    ) -> None:
        self.gamma = learner.gamma
        self.actor = self.make_actor(spec, network, norm, generator).to(device)
        self.adam = torch.optim.Adam(self.actor.parameters(), lr=learner.learning_rate)

    @staticmethod
    def make_actor(
        spec: EnvSpec, network: NetworkConfig, norm: TeamNorm, generator: torch.Generator
    ) -> SoftmaxActor:
        return SoftmaxActor(spec, norm)

    def update(self, rollout: Rollout, rewards: Rewards, remaining: float) -> dict[str, float]:
        steps, returns = rollout.transitions, torch.zeros_like(rewards.team)
        following = torch.zeros_like(rewards.team[0])
        for t in reversed(range(len(returns))):
            following = rewards.team[t] + self.gamma * following * ~rollout.done[t]
            returns[t] = following
        advantages = (returns - returns.mean()) / (returns.std() + 1e-8)
        log_probs = self.actor.log_prob(steps.obs, rollout.sampled_actions, steps.action_mask)
        loss = -(log_probs * advantages.unsqueeze(-1)).mean()
        self.adam.zero_grad()
        loss.backward()
        self.adam.step()
        return {"policy/loss": loss.item()}

    def advance(self, rollout: Rollout) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {"actor": self.actor.state_dict(), "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.actor.load_state_dict(state["actor"])
        self.adam.load_state_dict(state["adam"])
