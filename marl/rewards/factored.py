"""The factored reward: one global and many local rewards from one set of preferences.

Axes: N agents, O observation, S state, A action features; ``*L`` any leading axes.
"""

import copy
from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from envs import EnvSpec
from marl.config import RewardConfig
from marl.normalisers import TeamNorm, input_size
from marl.numerics import masked_mean
from marl.rewards.losses import expectile_loss, gumbel_loss, soft_value_loss
from marl.rewards.mixers import LinearMixer, Mixed, TwoLayerMixer
from marl.rewards.slow import follow
from marl.rewards.utilities import make_utility, read, read_next
from marl.types import Rewards, Transitions

PolicySampler = Callable[[Transitions], tuple[Tensor, Tensor]]
"""Draws actions of the current policy at some transitions: (actions, log-probabilities)."""


class FactoredReward(nn.Module):
    """Local utilities q_i(o_i, a_i), v_i(o_i) and a monotone mixer of the state.

        R   = Q_tot(s, a) - gamma_R (1 - terminated) V_tot(s')
        r_i = w_i(s) q_i - gamma_R (1 - terminated) w_i(s') v_i(o'_i)
              + [b(s) - gamma_R (1 - terminated) b(s')] / (agents alive)    (complete form)

    so that R = sum_i r_i. Without the bracket (additive form) the local streams miss what only
    the state tells; the bracket is mere shaping (Ng et al. 1999) where gamma_R is the policy's
    discount, and a reward of its own where it is smaller. Everything at s' comes from slow copies
    and carries no gradient: with V as fast as Q, V chases Q and the scale drifts.
    At gamma_R = 0 this is an explicit factored reward and V does not exist.

    With memory, q_i also depends on what agent i saw and did before in the episode and v_i on
    what it saw; v_i(o'_i) is read with the memory of the episode up to the step that led to o'_i.
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
        mixer = LinearMixer if config.mixer == "linear" else TwoLayerMixer
        size = (spec.state_size, spec.num_agents, config.mixer_hidden)
        self.q = make_utility(spec, config, input_size(spec) + spec.action_size, generator)
        self.q_mixer = mixer(*size, generator)
        if gamma > 0.0:
            self.v = make_utility(spec, config, input_size(spec), generator)
            self.v_mixer = self.q_mixer if config.shared_mixer else mixer(*size, generator)
            self.slow_v = copy.deepcopy(self.v).requires_grad_(False)
            self.slow_mixer = copy.deepcopy(self.v_mixer).requires_grad_(False)

    def forward(self, transitions: Transitions) -> Rewards:
        """Return R and r_i."""
        now, then = self.now(transitions), self.then(transitions)
        return self.rewards(transitions, now, then)[0]

    def now(self, steps: Transitions) -> Mixed:
        """Return Q_tot(s, a) and its parts."""
        q, memory = read(self.q, self._q_inputs(steps.obs, steps.actions), steps.history, "q")
        q = q if steps.alive is None else q * steps.alive
        return replace(self.q_mixer(self.norm.state(steps.state), q), memory=memory)

    @torch.no_grad()
    def then(self, steps: Transitions) -> Mixed | None:
        """Return gamma_R (1 - terminated) V_tot(s') and its parts; None where gamma_R is 0.

        The discount stands in the total, the utilities and the bias, once in each.
        """
        if self.gamma == 0.0:
            return None
        obs, next_obs = self.norm.obs(steps.obs), self.norm.obs(steps.next_obs)
        next_v, memory = read_next(self.slow_v, obs, next_obs, steps.history, "v")
        next_v = next_v if steps.next_alive is None else next_v * steps.next_alive
        mixed = self.slow_mixer(self.norm.state(steps.next_state), next_v)
        discount = self.gamma * (~steps.terminated).to(next_v.dtype)
        return Mixed(
            total=discount * mixed.total,
            utilities=discount.unsqueeze(-1) * mixed.utilities,
            weights=mixed.weights,
            bias=discount * mixed.bias,
            memory=memory,
        )

    def rewards(self, steps: Transitions, now: Mixed, then: Mixed | None) -> tuple[Rewards, Tensor]:
        """Return R, r_i and the bias part b(s) - gamma_R (1 - terminated) b(s')."""
        weighted = now.weights * now.utilities
        if then is None:
            return self._formed(steps, now.total, weighted, now.utilities, now.bias), now.bias
        team, bias = now.total - then.total, now.bias - then.bias
        weighted = weighted - then.weights * then.utilities
        plain = now.utilities - then.utilities
        return self._formed(steps, team, weighted, plain, bias), bias

    def _formed(
        self, steps: Transitions, team: Tensor, weighted: Tensor, plain: Tensor, bias: Tensor
    ) -> Rewards:
        """Return R with the form of local rewards that the configuration asks for."""
        if self.config.local_form == "plain":
            return Rewards(team=team, local=plain)
        if self.config.local_form == "additive":
            return Rewards(team=team, local=weighted)
        if steps.alive is None:
            return Rewards(team=team, local=weighted + bias.unsqueeze(-1) / weighted.shape[-1])
        share = bias / steps.alive.sum(dim=-1).clamp(min=1)
        return Rewards(team=team, local=weighted + share.unsqueeze(-1) * steps.alive)

    def utilities(
        self, obs: Float[Tensor, "*L N O"], actions: Tensor, alive: Tensor | None
    ) -> Float[Tensor, "*L N"]:
        """Return q_i(o_i, a_i) of a model without memory; a dead agent's is zero."""
        q = self.q(self._q_inputs(obs, actions)).squeeze(-1)
        return q if alive is None else q * alive

    def _q_inputs(self, obs: Float[Tensor, "*L N O"], actions: Tensor) -> Float[Tensor, "*L N I"]:
        """Return standardised observations with the actions behind them."""
        if self.is_discrete:
            actions = nn.functional.one_hot(actions, self.action_size).to(obs.dtype)
        return torch.cat((self.norm.obs(obs), actions), dim=-1)

    def value_parameters(self) -> list[nn.Parameter]:
        """Return what `value_loss` trains: v and, if it is separate, its mixer."""
        if self.gamma == 0.0:
            return []
        mixer = [] if self.config.shared_mixer else list(self.v_mixer.parameters())
        return [*self.v.parameters(), *mixer]

    def value_loss(
        self, transitions: Transitions, now: Mixed, weights: Tensor, policy: PolicySampler
    ) -> Tensor:
        """Return the loss that draws w_i v_i to the soft value of w_i q_i, agent by agent.

        `now` holds q_i and w_i(s); `weights` marks padding by zero. Gradients reach v only, and
        the mixer of V where it is a separate one, whose bias follows that of Q.
        """
        steps, config = transitions, self.config
        v, _ = read(self.v, self.norm.obs(steps.obs), steps.history, "v")
        q, log_probs = now.utilities.detach(), None
        if config.value_loss == "soft":
            actions, log_probs = policy(steps)
            with torch.no_grad():
                q = self.utilities(steps.obs, actions, steps.alive)
        q_weights = v_weights = now.weights.detach()
        bias_loss = torch.zeros_like(now.bias)
        if not config.shared_mixer:
            mixed = self.v_mixer(self.norm.state(steps.state), v)
            v_weights = mixed.weights
            bias_loss = 0.5 * (mixed.bias - now.bias.detach()) ** 2

        weighted_q, weighted_v = q_weights * q, v_weights * v
        if log_probs is not None:
            loss = soft_value_loss(weighted_q, weighted_v, log_probs, config.beta)
        elif config.value_loss == "expectile":
            loss = expectile_loss(weighted_q, weighted_v, config.expectile)
        else:
            loss = gumbel_loss(weighted_q, weighted_v, config.beta, config.exponent_clip)
        real = weights > 0
        present = real.unsqueeze(-1).expand_as(loss)
        present = present if steps.alive is None else present & steps.alive
        return masked_mean(loss, present) + masked_mean(bias_loss, real)

    def follow(self, rate: float) -> Tensor:
        """Move the slow copies by the Polyak rate and return how far V is from its own."""
        follow(self.v_mixer, self.slow_mixer, rate)
        return follow(self.v, self.slow_v, rate)
