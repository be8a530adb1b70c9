"""The central reward: one network of the state and the joint action, not decomposed.

Axes: N agents, S state, A action features; ``*L`` any leading axes.
"""

import copy
import itertools

import torch
from jaxtyping import Float, Num
from torch import Tensor, nn

from envs import EnvSpec
from marl.config import ConfigError, RewardConfig
from marl.data.types import BatchShares, Rewards, Transitions
from marl.nn.encoders import make_state_encoder
from marl.nn.layers import masked_mean, mlp
from marl.nn.normalisation import TeamNorm
from marl.rewards.base import PolicySampler, TeamValue, ValueBasedReward, polyak_update
from marl.rewards.factored import FactoredReward
from marl.rewards.losses import value_loss


class CentralReward(ValueBasedReward):
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
        if config.encoder:
            raise ConfigError(
                f"reward.encoder: got {config.encoder!r}, which reads observations, and a central "
                'reward reads the state; leave it out, or choose reward.model = "factored"'
            )
        hidden = matched_hidden(spec, config, gamma, norm)
        self.q = StateNetwork(spec, spec.num_agents * spec.action_size, hidden, generator)
        if gamma > 0.0:
            self.v = StateNetwork(spec, 0, hidden, generator)
            self.target_v = copy.deepcopy(self.v).requires_grad_(False)

    def q_tot(self, steps: Transitions) -> TeamValue:
        """Return Q(s, a) as the value of a team of one."""
        return as_team_value(
            self._joint_q(self.norm.state(steps.state), steps.actions, steps.alive)
        )

    @torch.no_grad()
    def next_v_tot(self, steps: Transitions) -> TeamValue | None:
        """Return gamma_R (1 - terminated) V(s') in the same form; None where gamma_R is 0."""
        if self.gamma == 0.0:
            return None
        next_v = self.target_v(self.norm.state(steps.next_state)).squeeze(-1)
        return as_team_value(self.gamma * (~steps.terminated).to(next_v.dtype) * next_v)

    def rewards(
        self, steps: Transitions, q: TeamValue, next_v: TeamValue | None
    ) -> tuple[Rewards, Tensor]:
        """Return R, without local rewards, and its bias part, which is zero."""
        return Rewards(team=q.total if next_v is None else q.total - next_v.total), q.bias

    def _joint_q(self, state: Tensor, actions: Tensor, alive: Tensor | None) -> Tensor:
        if self.is_discrete:
            actions = nn.functional.one_hot(actions, self.action_size).to(torch.float32)
        actions = actions if alive is None else actions * alive.unsqueeze(-1)
        return self.q(state, actions.flatten(-2)).squeeze(-1)

    def value_parameters(self) -> list[nn.Parameter]:
        """Return what `value_loss` trains."""
        return [] if self.gamma == 0.0 else list(self.v.parameters())

    def value_loss(
        self,
        steps: Transitions,
        q: TeamValue,
        weights: Tensor,
        policy: PolicySampler,
        shares: BatchShares | None = None,
    ) -> Tensor:
        """Return L_v, which draws V to the soft value of Q. Gradients reach V only."""
        state = self.norm.state(steps.state)
        v = self.v(state).squeeze(-1)
        joint_q, log_probs = q.total, None
        if self.config.value_loss == "soft":
            actions, local_log_probs = policy(steps)
            if steps.alive is not None:
                local_log_probs = local_log_probs * steps.alive
            log_probs = local_log_probs.sum(dim=-1)
            with torch.no_grad():
                joint_q = self._joint_q(state, actions, steps.alive)
        loss = masked_mean(value_loss(joint_q, v, self.config, log_probs), weights > 0)
        return loss if shares is None else loss * shares.steps

    def update_targets(self, rate: float) -> Tensor:
        """Move the target network by the Polyak rate; return the distance of V from it."""
        return polyak_update(self.v, self.target_v, rate)


class StateNetwork(nn.Module):
    """A tanh network of the state and, behind it, the joint action; pictures are encoded first."""

    def __init__(
        self, spec: EnvSpec, actions: int, hidden: tuple[int, ...], generator: torch.Generator
    ) -> None:
        """`actions` counts the columns of the joint action; 0: it is not read."""
        super().__init__()
        self.encoder = make_state_encoder(spec, generator)
        seen = spec.state_size if self.encoder is None else self.encoder.features
        self.layers = mlp(seen + actions, hidden, 1, output_gain=0.1, generator=generator)

    def forward(
        self, state: Num[Tensor, "*L S"], actions: Float[Tensor, "*L A"] | None = None
    ) -> Float[Tensor, "*L 1"]:
        x = state if self.encoder is None else self.encoder(state)
        out: Tensor = self.layers(x if actions is None else torch.cat((x, actions), dim=-1))
        return out


def as_team_value(total: Float[Tensor, "*L"]) -> TeamValue:
    """Return a value that is not decomposed as that of a team of one."""
    part = total.unsqueeze(-1)
    return TeamValue(
        total=total, utilities=part, weights=torch.ones_like(part), bias=torch.zeros_like(total)
    )


def matched_hidden(
    spec: EnvSpec, config: RewardConfig, gamma: float, norm: TeamNorm
) -> tuple[int, ...]:
    """Return the layer widths that give a central reward a factored one's parameters.

    Comparisons are fair only at equal size; all layers are widened by one factor. Encoders of
    pictures, which both have, do not count.
    """
    generator = torch.Generator().manual_seed(0)
    factored = FactoredReward(spec, config, gamma, norm, generator)
    wanted = sum(
        p.numel() for n, p in factored.named_parameters() if p.requires_grad and "encoder" not in n
    )
    encoder = make_state_encoder(spec, generator)
    state = spec.state_size if encoder is None else encoder.features
    joint = state + spec.num_agents * spec.action_size
    inputs = [joint] if gamma == 0.0 else [joint, state]

    def size(hidden: tuple[int, ...]) -> int:
        layers = [(i, *hidden, 1) for i in inputs]
        return sum((a + 1) * b for s in layers for a, b in itertools.pairwise(s))

    factor, hidden = 1.0, config.hidden_sizes
    while size(hidden) < wanted:
        factor += 1 / 64
        hidden = tuple(round(h * factor) for h in config.hidden_sizes)
    return hidden
