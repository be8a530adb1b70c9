"""The central reward: one network of the state and the joint action, not decomposed.

Axes: N agents, S state, A action features; ``*L`` any leading axes.
"""

import copy
import itertools

import torch
from torch import Tensor, nn

from envs import EnvSpec
from marl.config import RewardConfig
from marl.data.types import Rewards, Transitions
from marl.nn.layers import masked_mean, mlp
from marl.nn.normalisation import TeamNorm
from marl.rewards.factored import FactoredReward, Mixed, PolicySampler, polyak_update
from marl.rewards.losses import expectile_loss, gumbel_loss, soft_value_loss


class CentralReward(nn.Module):
    """R = Q(s, a) - gamma_R (1 - terminated) V(s') (IPL, arXiv 2305.15363), on the joint action.

    V at s' comes from a target network. At gamma_R = 0 this is an explicit per-step reward.
    """

    def __init__(
        self,
        spec: EnvSpec,
        config: RewardConfig,
        gamma: float,
        norm: TeamNorm,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.config = config
        self.gamma = gamma
        self.norm = norm
        self.is_discrete = spec.action_kind == "discrete"
        self.action_size = spec.action_size
        hidden = matched_hidden(spec, config, gamma, norm)
        joint = spec.state_size + spec.num_agents * spec.action_size
        self.q = mlp(joint, hidden, 1, output_gain=0.1, generator=generator)
        if gamma > 0.0:
            self.v = mlp(spec.state_size, hidden, 1, output_gain=0.1, generator=generator)
            self.target_v = copy.deepcopy(self.v).requires_grad_(False)

    def forward(self, transitions: Transitions) -> Rewards:
        """Return R; there are no local rewards."""
        now, then = self.now(transitions), self.then(transitions)
        return self.rewards(transitions, now, then)[0]

    def now(self, steps: Transitions) -> Mixed:
        """Return Q(s, a) as a mixture of one part."""
        return _undecomposed(
            self._joint_q(self.norm.state(steps.state), steps.actions, steps.alive)
        )

    @torch.no_grad()
    def then(self, steps: Transitions) -> Mixed | None:
        """Return gamma_R (1 - terminated) V(s') as a mixture of one part; None if gamma_R is 0."""
        if self.gamma == 0.0:
            return None
        next_v = self.target_v(self.norm.state(steps.next_state)).squeeze(-1)
        return _undecomposed(self.gamma * (~steps.terminated).to(next_v.dtype) * next_v)

    def rewards(self, steps: Transitions, now: Mixed, then: Mixed | None) -> tuple[Rewards, Tensor]:
        """Return R, without local rewards, and its bias part, which is zero."""
        team = now.total if then is None else now.total - then.total
        return Rewards(team=team), now.bias

    def _joint_q(self, state: Tensor, actions: Tensor, alive: Tensor | None) -> Tensor:
        if self.is_discrete:
            actions = nn.functional.one_hot(actions, self.action_size).to(state.dtype)
        actions = actions if alive is None else actions * alive.unsqueeze(-1)
        return self.q(torch.cat((state, actions.flatten(-2)), dim=-1)).squeeze(-1)

    def value_parameters(self) -> list[nn.Parameter]:
        """Return what `value_loss` trains."""
        return [] if self.gamma == 0.0 else list(self.v.parameters())

    def value_loss(
        self, transitions: Transitions, now: Mixed, weights: Tensor, policy: PolicySampler
    ) -> Tensor:
        """Return the loss that draws V to the soft value of Q. Gradients reach V only."""
        steps, config = transitions, self.config
        state = self.norm.state(steps.state)
        v = self.v(state).squeeze(-1)
        if config.value_loss == "soft":
            actions, log_probs = policy(steps)
            log_probs = log_probs if steps.alive is None else log_probs * steps.alive
            with torch.no_grad():
                q = self._joint_q(state, actions, steps.alive)
            loss = soft_value_loss(q, v, log_probs.sum(dim=-1), config.beta)
        elif config.value_loss == "expectile":
            loss = expectile_loss(now.total, v, config.expectile)
        else:
            loss = gumbel_loss(now.total, v, config.beta, config.exponent_clip)
        return masked_mean(loss, weights > 0)

    def update_targets(self, rate: float) -> Tensor:
        """Move the target network by the Polyak rate; return the distance of V from it."""
        return polyak_update(self.v, self.target_v, rate)


def _undecomposed(total: Tensor) -> Mixed:
    """Return a value that is not decomposed in the form of one that is."""
    part = total.unsqueeze(-1)
    return Mixed(
        total=total, utilities=part, weights=torch.ones_like(part), bias=torch.zeros_like(total)
    )


def matched_hidden(
    spec: EnvSpec, config: RewardConfig, gamma: float, norm: TeamNorm
) -> tuple[int, ...]:
    """Return the layer widths that give a central reward a factored one's parameters.

    Comparisons are fair only at equal size; all layers are widened by one factor.
    """
    generator = torch.Generator().manual_seed(0)
    factored = FactoredReward(spec, config, gamma, norm, generator)
    wanted = sum(p.numel() for p in factored.parameters() if p.requires_grad)
    joint = spec.state_size + spec.num_agents * spec.action_size
    inputs = [joint] if gamma == 0.0 else [joint, spec.state_size]

    def size(hidden: tuple[int, ...]) -> int:
        layers = [(i, *hidden, 1) for i in inputs]
        return sum((a + 1) * b for s in layers for a, b in itertools.pairwise(s))

    factor = 1.0
    while size(tuple(round(h * factor) for h in config.hidden_sizes)) < wanted:
        factor += 1 / 64
    return tuple(max(1, round(h * factor)) for h in config.hidden_sizes)
