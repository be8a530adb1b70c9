"""Critics of the team and of every agent; they read what `TeamNorm` has standardised.

Where the time limit ends the task (`EnvSpec.finite_horizon`), or the policy is paid at an episode's
end only (`make_learner`), they also see how much of the time is over, as the last feature
(`with_time`). How much reward is still to come depends on that, and without it the time left is
noise in every advantage (Pardo et al. 2018, arXiv 1712.00378).

Axes: T time, N agents, O observation features, S state features, H hidden units, M hidden
states of a critic (1 or N); ``*L`` any leading axes and ``*B`` those between time and agents.
"""

import torch
from jaxtyping import Bool, Float, Int64, Num
from torch import Tensor, nn

from envs import EnvSpec
from marl.config import NetworkConfig
from marl.nn.encoders import make_encoder, make_state_encoder
from marl.nn.gru import RecurrentBody
from marl.nn.gru_passes import explicit_passes
from marl.nn.layers import agent_mlp, mlp, with_team
from marl.nn.mlp import ExplicitMLP
from marl.nn.normalisation import ValueNorm


def with_time(
    features: Num[Tensor, "*L X"], elapsed: Int64[Tensor, "*T"], max_steps: int
) -> Num[Tensor, "*L Y"]:
    """Return features with one more: 2 t / T - 1 of the `elapsed` steps t, told all agents.

    Behind the bytes of a picture it is a byte, too, which `_encoded` reads back.
    """
    time = elapsed.view(*elapsed.shape, *[1] * (features.ndim - elapsed.ndim)) / max_steps
    time = (time * 255).round() if features.dtype == torch.uint8 else 2.0 * time - 1.0
    told = time.to(features.dtype).expand(*features.shape[:-1], 1)
    return torch.cat((features, told), dim=-1)


def _encoded(
    encoder: nn.Module | None, features: Num[Tensor, "*L X"], sees_time: bool
) -> Num[Tensor, "*L Y"]:
    """Return what an encoder makes of the features, and the time as it is."""
    if encoder is None or not sees_time:
        return features if encoder is None else encoder(features)
    time = features[..., -1:]
    time = time / 127.5 - 1.0 if time.dtype == torch.uint8 else time
    return torch.cat((encoder(features[..., :-1]), time), dim=-1)


class TeamCritic(nn.Module):
    """V_phi(s, t): the normalised value of the team's stream; observations are not read."""

    def __init__(self, spec: EnvSpec, config: NetworkConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.value_norm = ValueNorm()
        self.sees_time = spec.finite_horizon
        self.encoder = make_state_encoder(spec, generator)
        self.body: nn.Module
        inputs = spec.state_size if self.encoder is None else self.encoder.features
        inputs += int(self.sees_time)
        hidden = config.hidden_sizes
        if config.recurrence == "gru":
            self.body = RecurrentBody(
                1, inputs, hidden, 1, shared=True, output_gain=1.0, generator=generator
            )
        else:
            self.body = mlp(inputs, hidden, 1, output_gain=1.0, generator=generator)
        self.passes = explicit_passes(self.body) if self.encoder is None else None

    def forward(
        self, obs: Num[Tensor, "*L N O"] | None, state: Num[Tensor, "*L S"]
    ) -> Float[Tensor, "*L"]:
        state = _encoded(self.encoder, state, self.sees_time)
        body = self.passes if isinstance(self.passes, ExplicitMLP) else self.body
        return body(state).squeeze(-1)

    def unroll(
        self,
        obs: Num[Tensor, "T *B N O"] | None,
        state: Num[Tensor, "T *B S"],
        hidden: Float[Tensor, "*B M H"],
        starts: Bool[Tensor, "T *B"],
    ) -> tuple[Float[Tensor, "T *B"], Float[Tensor, "T *B 1 H"]]:
        """Return the values of successive steps and the hidden state after each."""
        state = _encoded(self.encoder, state, self.sees_time)
        values, hidden_states = self.body(state.unsqueeze(-2), hidden, starts)
        return values.squeeze(-1).squeeze(-1), hidden_states


class AgentCritics(nn.Module):
    """V_psi,i(o_i, s, t): a normalised value per agent; without the state V_psi,i(o_i, t), as in
    IPPO. The time stands behind the state or, without it, behind the observations."""

    def __init__(
        self,
        spec: EnvSpec,
        config: NetworkConfig,
        generator: torch.Generator,
        *,
        sees_state: bool = True,
    ) -> None:
        super().__init__()
        self.sees_state = sees_state
        self.sees_time = spec.finite_horizon
        self.value_norm = ValueNorm()
        self.encoder = make_encoder(
            spec,
            config.encoder,
            "network.encoder",
            shared=config.share_parameters,
            generator=generator,
        )
        self.state_encoder = make_state_encoder(spec, generator) if sees_state else None
        own = spec.obs_size if self.encoder is None else self.encoder.features
        team = spec.state_size if self.state_encoder is None else self.state_encoder.features
        if sees_state:
            team += int(self.sees_time)
        else:
            own += int(self.sees_time)
        body = RecurrentBody if config.recurrence == "gru" else agent_mlp
        self.body: nn.Module = body(
            spec.num_agents,
            own + (team if sees_state else 0),
            config.hidden_sizes,
            1,
            shared=config.share_parameters,
            output_gain=1.0,
            generator=generator,
            ids_at=own,
        )
        is_plain = self.encoder is None and self.state_encoder is None
        self.passes = explicit_passes(self.body) if is_plain else None

    def forward(
        self, obs: Num[Tensor, "*L N O"], state: Num[Tensor, "*L S"] | None
    ) -> Float[Tensor, "*L N"]:
        body = self.passes if isinstance(self.passes, ExplicitMLP) else self.body
        obs, state = self._encoded(obs, state)
        return (body(obs, state) if self.sees_state else body(obs)).squeeze(-1)

    def _encoded(self, obs: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return what the layers read."""
        obs = _encoded(self.encoder, obs, self.sees_time and not self.sees_state)
        return obs, None if state is None else _encoded(self.state_encoder, state, self.sees_time)

    def unroll(
        self,
        obs: Num[Tensor, "T *B N O"],
        state: Num[Tensor, "T *B S"] | None,
        hidden: Float[Tensor, "*B M H"],
        starts: Bool[Tensor, "T *B"],
    ) -> tuple[Float[Tensor, "T *B N"], Float[Tensor, "T *B N H"]]:
        """Return the values of successive steps and the hidden state after each."""
        obs, state = self._encoded(obs, state)
        inputs = with_team(obs, state) if self.sees_state and state is not None else obs
        values, hidden_states = self.body(inputs, hidden, starts)
        return values.squeeze(-1), hidden_states
