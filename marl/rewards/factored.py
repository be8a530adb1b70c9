"""The factored reward: one global and many local rewards from one set of preferences.

Axes: N agents, O observation, S state, A action features; ``*L`` any leading axes.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from envs import EnvSpec
from marl.config import ConfigError, RewardConfig
from marl.data.types import History, Rewards, Transitions
from marl.nn.gru import RecurrentBody, initial_hidden
from marl.nn.layers import agent_mlp, masked_mean, mlp
from marl.nn.normalisation import TeamNorm, input_size
from marl.rewards.losses import expectile_loss, gumbel_loss, soft_value_loss

# The networks of the local utilities, feed-forward or recurrent.
#
# Axes: T time, N agents, I input features, H hidden units; ``*B`` the axes beside time and ``*L``
# any leading axes.


MAX_RECURRENT_STEPS = 500
"""Longest episodes, in steps, that a recurrent reward is fitted on: it reads whole ones."""


def make_utility(
    spec: EnvSpec, config: RewardConfig, inputs: int, generator: torch.Generator
) -> nn.Module:
    """Return a network of one number per agent, recurrent if the configuration says so."""
    if config.recurrence == "gru" and spec.max_steps > MAX_RECURRENT_STEPS:
        raise ConfigError(
            f'reward.recurrence: "gru" reads whole episodes, of at most {MAX_RECURRENT_STEPS} '
            f"steps, and those of {spec.name} have up to {spec.max_steps}; give the environment a "
            'smaller max_steps or set reward.recurrence = "none"'
        )
    body = RecurrentBody if config.recurrence == "gru" else agent_mlp
    return body(
        spec.num_agents,
        inputs,
        config.hidden_sizes,
        1,
        shared=config.share_parameters,
        output_gain=0.1,
        generator=generator,
    )


def read(
    body: nn.Module, x: Float[Tensor, "*L N I"], history: History | None, name: str
) -> tuple[Float[Tensor, "*L N"], Float[Tensor, "*L N H"] | None]:
    """Return a network's utilities and the hidden state after each step; None if feed-forward.

    `name` is the network's in `History.hidden`.
    """
    if not isinstance(body, RecurrentBody):
        return body(x).squeeze(-1), None
    if history is None:
        raise ValueError(
            "a recurrent reward model got Transitions without history; it reads the steps of "
            "episodes in their order, so say in Transitions.history which follow which"
        )
    axis = history.time_axis
    x, starts = x.movedim(axis, 0), history.starts.movedim(axis, 0)
    hidden = None if history.hidden is None else history.hidden[name]
    if hidden is None:
        zero = initial_hidden(body, starts[0].numel())
        assert zero is not None
        hidden = zero.view(*starts.shape[1:], *zero.shape[1:])
    outputs, hidden_states = body(x, hidden, starts)
    return outputs.squeeze(-1).movedim(0, axis), hidden_states.movedim(0, axis)


def read_next(
    body: nn.Module,
    x: Float[Tensor, "*L N I"],
    next_x: Float[Tensor, "*L N I"],
    history: History | None,
    name: str,
) -> tuple[Float[Tensor, "*L N"], Float[Tensor, "*L N H"] | None]:
    """Return the utilities of what every step led to, and the hidden state after each step.

    What a step led to is read with the hidden state of its episode up to that step.
    """
    if not isinstance(body, RecurrentBody):
        return body(next_x).squeeze(-1), None
    _, hidden_states = read(body, x, history, name)
    assert hidden_states is not None
    return body.step(next_x, hidden_states)[0].squeeze(-1), hidden_states


# Mixers: how agents' utilities add up to the team's value.
#
# Axes: N agents, S state features, H hidden units; ``*L`` any leading axes.


_ONE = math.log(math.e - 1.0)
"""softplus(_ONE) = 1: mixers start as a plain sum."""


@dataclass(frozen=True, kw_only=True)
class Mixed:
    """A team value and, for a linear mixer, what it is made of."""

    total: Float[Tensor, "*L"]
    utilities: Float[Tensor, "*L N"]
    """What was mixed."""
    weights: Float[Tensor, "*L N"]
    """w_i(s) >= 0; ones where the mixer is not linear."""
    bias: Float[Tensor, "*L"]
    """b(s)."""
    hidden: Float[Tensor, "*L N H"] | None = None
    """The utilities' hidden state after each step. None: they are feed-forward."""


class LinearMixer(nn.Module):
    """Q_tot = sum_i w_i(s) q_i + b(s) with w_i >= 0 (O-MAPL, arXiv 2501.18944)."""

    def __init__(
        self, state_size: int, num_agents: int, hidden: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.hypernetwork = mlp(
            state_size, (hidden,), num_agents + 1, output_gain=0.1, generator=generator
        )

    def forward(self, state: Float[Tensor, "*L S"], utilities: Float[Tensor, "*L N"]) -> Mixed:
        out = self.hypernetwork(state)
        weights = nn.functional.softplus(out[..., :-1] + _ONE)
        bias = out[..., -1]
        total = (weights * utilities).sum(dim=-1) + bias
        return Mixed(total=total, utilities=utilities, weights=weights, bias=bias)


class TwoLayerMixer(nn.Module):
    """A monotone two-layer network with state-dependent weights (QMIX, arXiv 1803.11485)."""

    def __init__(
        self, state_size: int, num_agents: int, hidden: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.units = 32
        outputs = self.units * (num_agents + 2) + 1
        self.hypernetwork = mlp(
            state_size, (hidden,), outputs, output_gain=0.1, generator=generator
        )

    def forward(self, state: Float[Tensor, "*L S"], utilities: Float[Tensor, "*L N"]) -> Mixed:
        units, agents = self.units, utilities.shape[-1]
        out = self.hypernetwork(state)
        first, bias, second, last = out.split((units * agents, units, units, 1), dim=-1)
        first = nn.functional.softplus(first + _ONE).unflatten(-1, (agents, units)) / agents
        second = nn.functional.softplus(second + _ONE) / math.sqrt(units)
        layer = nn.functional.elu((utilities.unsqueeze(-1) * first).sum(dim=-2) + bias)
        total = (layer * second).sum(dim=-1) + last.squeeze(-1)
        ones, zero = torch.ones_like(utilities), torch.zeros_like(total)
        return Mixed(total=total, utilities=utilities, weights=ones, bias=zero)


# Target networks: the decisive stabiliser of an implicit reward.


@torch.no_grad()
def polyak_update(online: nn.Module, target: nn.Module, rate: float) -> Tensor:
    """Update a target network, target += rate (online - target); return their distance.

    The distance is the Euclidean norm over all parameters, after the move.
    """
    gaps: list[Tensor] = []
    for source, moved in zip(online.parameters(), target.parameters(), strict=True):
        moved.lerp_(source, rate)
        gaps.append((source - moved).norm())
    return torch.stack(gaps).norm()


PolicySampler = Callable[[Transitions], tuple[Tensor, Tensor]]
"""Draws actions of the current policy at some transitions: (actions, log-probabilities)."""


class FactoredReward(nn.Module):
    """Local utilities q_i(o_i, a_i), v_i(o_i) and a monotone mixer of the state.

        R   = Q_tot(s, a) - gamma_R (1 - terminated) V_tot(s')
        r_i = w_i(s) q_i - gamma_R (1 - terminated) w_i(s') v_i(o'_i)
              + [b(s) - gamma_R (1 - terminated) b(s')] / (agents alive)    (complete form)

    so that R = sum_i r_i. Without the bracket (additive form) the local streams miss what only
    the state tells; the bracket is mere shaping (Ng et al. 1999) where gamma_R is the policy's
    discount, and a reward of its own where it is smaller. Everything at s' comes from target
    networks and carries no gradient: with V as fast as Q, V chases Q and the scale drifts.
    At gamma_R = 0 this is an explicit factored reward and V does not exist.

    Recurrent, q_i also depends on what agent i saw and did before in the episode and v_i on what it
    saw; v_i(o'_i) is read with the hidden state of the episode up to the step that led to o'_i.
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
            self.target_v = copy.deepcopy(self.v).requires_grad_(False)
            self.target_mixer = copy.deepcopy(self.v_mixer).requires_grad_(False)

    def forward(self, transitions: Transitions) -> Rewards:
        """Return R and r_i."""
        now, then = self.now(transitions), self.then(transitions)
        return self.rewards(transitions, now, then)[0]

    def now(self, steps: Transitions) -> Mixed:
        """Return Q_tot(s, a) and its parts."""
        q, hidden = read(self.q, self._q_inputs(steps.obs, steps.actions), steps.history, "q")
        q = q if steps.alive is None else q * steps.alive
        return replace(self.q_mixer(self.norm.state(steps.state), q), hidden=hidden)

    @torch.no_grad()
    def then(self, steps: Transitions) -> Mixed | None:
        """Return gamma_R (1 - terminated) V_tot(s') and its parts; None where gamma_R is 0.

        The discount stands in the total, the utilities and the bias, once in each.
        """
        if self.gamma == 0.0:
            return None
        obs, next_obs = self.norm.obs(steps.obs), self.norm.obs(steps.next_obs)
        next_v, hidden = read_next(self.target_v, obs, next_obs, steps.history, "v")
        next_v = next_v if steps.next_alive is None else next_v * steps.next_alive
        mixed = self.target_mixer(self.norm.state(steps.next_state), next_v)
        discount = self.gamma * (~steps.terminated).to(next_v.dtype)
        return Mixed(
            total=discount * mixed.total,
            utilities=discount.unsqueeze(-1) * mixed.utilities,
            weights=mixed.weights,
            bias=discount * mixed.bias,
            hidden=hidden,
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
        """Return q_i(o_i, a_i) of a feed-forward model; a dead agent's is zero."""
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

    def update_targets(self, rate: float) -> Tensor:
        """Move the target networks by the Polyak rate; return the distance of V from its own."""
        polyak_update(self.v_mixer, self.target_mixer, rate)
        return polyak_update(self.v, self.target_v, rate)
