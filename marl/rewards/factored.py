"""The factored reward: a global and local rewards, learned from labels or returns of episodes.

Read top-down as the equations of IMAP (arXiv 2509.21828): the rewards, the mixer of the agents'
utilities (O-MAPL, arXiv 2501.18944), and the networks of the utilities themselves.

Axes: T time, N agents, I inputs, O observation, S state, A action features, H hidden units; ``*L``
any leading axes.
"""

import copy
import math
from dataclasses import replace

import torch
from jaxtyping import Float, Num
from torch import Tensor, nn

from envs import EnvSpec
from marl.config import RewardConfig
from marl.data.types import BatchShares, History, Rewards, Transitions
from marl.nn.encoders import EncodedBody, StateEncoder, make_encoder, make_state_encoder
from marl.nn.gru import RecurrentBody, initial_hidden
from marl.nn.layers import agent_mlp, masked_mean, mlp
from marl.nn.mlp import explicit
from marl.nn.normalisation import TeamNorm
from marl.rewards.base import (
    PolicySampler,
    TeamValue,
    ValueBasedReward,
    check_episode_length,
    polyak_update,
)
from marl.rewards.losses import value_loss

_SOFTPLUS_OF_ONE = math.log(math.e - 1.0)
"""softplus of it is 1: mixers start as a plain sum."""


class FactoredReward(ValueBasedReward):
    """Local utilities q_i(o_i, a_i), v_i(o_i) and a monotone mixer of the state.

        R   = Q_tot(s, a) - gamma_R (1 - terminated) V_tot(s')
        r_i = w_i(s) q_i - gamma_R (1 - terminated) w_i(s') v_i(o'_i)
              + [b(s) - gamma_R (1 - terminated) b(s')] / (agents alive)    (complete form)

    so that R = sum_i r_i. Without the bracket (additive form) the local streams miss what only
    the state tells; the bracket is mere shaping (Ng et al. 1999) where gamma_R is the policy's
    discount, and a reward of its own where it is smaller.

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
        self.q = make_utility(spec, config, spec.action_size, generator)
        self.q_mixer = make_mixer(spec, config, generator)
        self.readers = {"q": Reader(self.q, norm)}
        if gamma > 0.0:
            self.v = make_utility(spec, config, 0, generator)
            self.v_mixer = self.q_mixer
            if not config.shared_mixer:
                self.v_mixer = make_mixer(spec, config, generator)
            self.target_v = copy.deepcopy(self.v).requires_grad_(False)
            self.target_mixer = copy.deepcopy(self.v_mixer).requires_grad_(False)
            self.readers |= {"v": Reader(self.v, norm), "target_v": Reader(self.target_v, norm)}

    def q_tot(self, steps: Transitions) -> TeamValue:
        """Return Q_tot(s, a) = sum_i w_i(s) q_i(o_i, a_i) + b(s) and its parts."""
        actions = self._features(steps.actions)
        q, hidden = utility_values(self.readers["q"], steps.obs, steps.history, "q", actions)
        q = q if steps.alive is None else q * steps.alive
        return replace(self.q_mixer(self.norm.state(steps.state), q), hidden=hidden)

    @torch.no_grad()
    def next_v_tot(self, steps: Transitions) -> TeamValue | None:
        """Return gamma_R (1 - terminated) V_tot(s') and its parts; None where gamma_R is 0."""
        if self.gamma == 0.0:
            return None
        next_v, hidden = next_utility_values(self.readers["target_v"], steps, "v")
        next_v = next_v if steps.next_alive is None else next_v * steps.next_alive
        value = self.target_mixer(self.norm.state(steps.next_state), next_v)
        discount = self.gamma * (~steps.terminated).to(next_v.dtype)
        return TeamValue(
            total=discount * value.total,
            utilities=discount.unsqueeze(-1) * value.utilities,
            weights=value.weights,
            bias=discount * value.bias,
            hidden=hidden,
        )

    def rewards(
        self, steps: Transitions, q: TeamValue, next_v: TeamValue | None
    ) -> tuple[Rewards, Tensor]:
        """Return R, r_i and the bias part b(s) - gamma_R (1 - terminated) b(s')."""
        weighted = q.weights * q.utilities
        if next_v is None:
            return self._formed(steps, q.total, weighted, q.utilities, q.bias), q.bias
        team, bias = q.total - next_v.total, q.bias - next_v.bias
        weighted = weighted - next_v.weights * next_v.utilities
        plain = q.utilities - next_v.utilities
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

    def value_parameters(self) -> list[nn.Parameter]:
        """Return what `value_loss` trains: v and, if it is separate, its mixer."""
        if self.gamma == 0.0:
            return []
        mixer = [] if self.config.shared_mixer else list(self.v_mixer.parameters())
        return [*self.v.parameters(), *mixer]

    def value_loss(
        self,
        steps: Transitions,
        q: TeamValue,
        weights: Tensor,
        policy: PolicySampler,
        shares: BatchShares | None = None,
    ) -> Tensor:
        """Return L_v, which draws w_i v_i to the soft value of w_i q_i, agent by agent.

        Gradients reach v only, and the mixer of V where it is a separate one, whose bias is drawn
        to that of Q.
        """
        v, _ = utility_values(self.readers["v"], steps.obs, steps.history, "v")
        local_q, log_probs = q.utilities.detach(), None
        if self.config.value_loss == "soft":
            actions, log_probs = policy(steps)
            with torch.no_grad():
                local_q = self.local_q(steps.obs, actions, steps.alive)
        q_weights = v_weights = q.weights.detach()
        bias_loss = torch.zeros_like(q.bias)
        if not self.config.shared_mixer:
            v_tot = self.v_mixer(self.norm.state(steps.state), v)
            v_weights = v_tot.weights
            bias_loss = 0.5 * (v_tot.bias - q.bias.detach()) ** 2
        loss = value_loss(q_weights * local_q, v_weights * v, self.config, log_probs)
        is_sampled = weights > 0
        present = is_sampled.unsqueeze(-1).expand_as(loss)
        present = present if steps.alive is None else present & steps.alive
        mean, bias_mean = masked_mean(loss, present), masked_mean(bias_loss, is_sampled)
        if shares is not None:
            mean, bias_mean = mean * shares.agent_steps, bias_mean * shares.steps
        return mean + bias_mean

    def update_targets(self, rate: float) -> Tensor:
        """Move the target networks by the Polyak rate; return the distance of V from its own."""
        polyak_update(self.v_mixer, self.target_mixer, rate)
        return polyak_update(self.v, self.target_v, rate)

    def advantages(self, steps: Transitions) -> Rewards:
        """Return Q_tot - V_tot and w_i (q_i - v_i); see `local_advantages`."""
        local = self.local_advantages(steps)
        return Rewards(team=local.sum(dim=-1), local=local, are_advantages=True)

    @torch.no_grad()
    def local_advantages(self, steps: Transitions) -> Float[Tensor, "*L N"]:
        """Return w_i(s) (q_i(o_i, a_i) - v_i(o_i)), the implicit advantage of each agent's action.

        They sum to Q_tot - V_tot. Zero where an agent is absent. Raises `ValueError` at gamma_R =
        0, where no v is learned, and with an unshared mixer, whose difference they are not.
        """
        if self.gamma == 0.0 or not self.config.shared_mixer:
            raise ValueError("there is no v_i on the scale of q_i; it takes gamma_R > 0")
        q = self.q_tot(steps)
        v, _ = utility_values(self.readers["v"], steps.obs, steps.history, "v")
        v = v if steps.alive is None else v * steps.alive
        return q.weights * (q.utilities - v)

    def local_q(
        self, obs: Num[Tensor, "*L N O"], actions: Tensor, alive: Tensor | None
    ) -> Float[Tensor, "*L N"]:
        """Return q_i(o_i, a_i) of a feed-forward model; a dead agent's is zero."""
        q = self.readers["q"].body(self.readers["q"].inputs(obs, self._features(actions)))
        return q.squeeze(-1) if alive is None else q.squeeze(-1) * alive

    def _features(self, actions: Tensor) -> Float[Tensor, "*L N A"]:
        """Return actions as numbers, choices one-hot."""
        if not self.is_discrete:
            return actions
        return nn.functional.one_hot(actions, self.action_size).to(torch.float32)


class LinearMixer(nn.Module):
    """Q_tot = sum_i w_i(s) q_i + b(s) with w_i >= 0 (O-MAPL, arXiv 2501.18944)."""

    def __init__(
        self,
        inputs: int,
        num_agents: int,
        hidden: int,
        generator: torch.Generator,
        encoder: StateEncoder | None = None,
    ) -> None:
        """`inputs` counts the features of the state or, if there is one, of its encoder."""
        super().__init__()
        self.encoder = encoder
        self.hypernetwork = mlp(
            inputs, (hidden,), num_agents + 1, output_gain=0.1, generator=generator
        )
        self.passes = explicit(self.hypernetwork)

    def forward(self, state: Num[Tensor, "*L S"], utilities: Float[Tensor, "*L N"]) -> TeamValue:
        out = self.passes(state if self.encoder is None else self.encoder(state))
        weights = nn.functional.softplus(out[..., :-1] + _SOFTPLUS_OF_ONE)
        bias = out[..., -1]
        total = (weights * utilities).sum(dim=-1) + bias
        return TeamValue(total=total, utilities=utilities, weights=weights, bias=bias)


class TwoLayerMixer(nn.Module):
    """A monotone two-layer network with state-dependent weights (QMIX, arXiv 1803.11485)."""

    def __init__(
        self,
        inputs: int,
        num_agents: int,
        hidden: int,
        generator: torch.Generator,
        encoder: StateEncoder | None = None,
    ) -> None:
        """`inputs` counts the features of the state or, if there is one, of its encoder."""
        super().__init__()
        self.encoder = encoder
        self.units = 32
        outputs = self.units * (num_agents + 2) + 1
        self.hypernetwork = mlp(inputs, (hidden,), outputs, output_gain=0.1, generator=generator)
        self.passes = explicit(self.hypernetwork)

    def forward(self, state: Num[Tensor, "*L S"], utilities: Float[Tensor, "*L N"]) -> TeamValue:
        units, agents = self.units, utilities.shape[-1]
        out = self.passes(state if self.encoder is None else self.encoder(state))
        first, bias, second, last = out.split((units * agents, units, units, 1), dim=-1)
        first = nn.functional.softplus(first + _SOFTPLUS_OF_ONE) / agents
        first = first.unflatten(-1, (agents, units))
        second = nn.functional.softplus(second + _SOFTPLUS_OF_ONE) / math.sqrt(units)
        layer = nn.functional.elu((utilities.unsqueeze(-1) * first).sum(dim=-2) + bias)
        total = (layer * second).sum(dim=-1) + last.squeeze(-1)
        ones, zero = torch.ones_like(utilities), torch.zeros_like(total)
        return TeamValue(total=total, utilities=utilities, weights=ones, bias=zero)


def make_mixer(
    spec: EnvSpec, config: RewardConfig, generator: torch.Generator
) -> LinearMixer | TwoLayerMixer:
    """Return the mixer that the configuration names; it encodes a state of pictures itself."""
    encoder = make_state_encoder(spec, generator)
    inputs = spec.state_size if encoder is None else encoder.features
    kind = LinearMixer if config.mixer == "linear" else TwoLayerMixer
    return kind(inputs, spec.num_agents, config.mixer_hidden, generator, encoder)


class Reader:
    """How a utility network reads observations: standardised, and through its encoder if it has
    one. It has no parameters of its own."""

    def __init__(self, network: nn.Module, norm: TeamNorm) -> None:
        self.norm = norm
        self.encoder = network.encoder if isinstance(network, EncodedBody) else None
        body = network.body if isinstance(network, EncodedBody) else network
        self.body = explicit(body)

    def inputs(
        self, obs: Num[Tensor, "*L N O"], actions: Float[Tensor, "*L N A"] | None = None
    ) -> Float[Tensor, "*L N I"]:
        """Return what the layers read: observations, with the actions behind them."""
        seen, tokens = self.norm.obs(obs), None
        if self.encoder is not None:
            seen, tokens = self.encoder.with_tokens(seen)
            if actions is not None and tokens is not None and self.encoder.about is not None:
                actions = self.encoder.about.described(actions, tokens)
        return seen if actions is None else torch.cat((seen, actions), dim=-1)


def make_utility(
    spec: EnvSpec, config: RewardConfig, actions: int, generator: torch.Generator
) -> nn.Module:
    """Return a network of one number per agent, recurrent if the configuration says so.

    It reads what an agent observes and so many `actions` columns behind.
    """
    if config.recurrence == "gru":
        check_episode_length(spec, "reward.recurrence")
    encoder = make_encoder(
        spec, config.encoder, "reward.encoder", shared=config.share_parameters, generator=generator
    )
    seen = spec.obs_size if encoder is None else encoder.features
    if actions and encoder is not None and encoder.about is not None:
        actions = encoder.about.columns
    make = RecurrentBody if config.recurrence == "gru" else agent_mlp
    body = make(
        spec.num_agents,
        seen + actions,
        config.hidden_sizes,
        1,
        shared=config.share_parameters,
        output_gain=0.1,
        generator=generator,
        ids_at=seen,
    )
    return body if encoder is None else EncodedBody(encoder, body)


def utility_values(
    reader: Reader,
    obs: Num[Tensor, "*L N O"],
    history: History | None,
    name: str,
    actions: Float[Tensor, "*L N A"] | None = None,
) -> tuple[Float[Tensor, "*L N"], Float[Tensor, "*L N H"] | None]:
    """Return a network's utilities and the hidden state after each step; None if feed-forward.

    `name` is the network's in `History.hidden`.
    """
    body, x = reader.body, reader.inputs(obs, actions)
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


def next_utility_values(
    reader: Reader,
    steps: Transitions,
    name: str,
) -> tuple[Float[Tensor, "*L N"], Float[Tensor, "*L N H"] | None]:
    """Return the utilities of what every step led to, and the hidden state after each step.

    What a step led to is read with the hidden state of its episode up to that step.
    """
    body, next_x = reader.body, reader.inputs(steps.next_obs)
    if not isinstance(body, RecurrentBody):
        return body(next_x).squeeze(-1), None
    _, hidden_states = utility_values(reader, steps.obs, steps.history, name)
    assert hidden_states is not None
    return body.step(next_x, hidden_states)[0].squeeze(-1), hidden_states
