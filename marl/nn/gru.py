"""Gated recurrent units for a team: a hidden state that sums up the episode so far.

Axes: T time, E environments, N agents, I input features, H hidden units, A outputs; ``*B`` the
axes between time and agents.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from marl.nn.layers import AgentLinear, Tanh, agent_mlp, with_ids


class AgentGRU(nn.Module):
    """A gated recurrent unit (Cho et al. 2014) of every agent, with shared weights or its own.

    A dead agent's hidden state goes on with what the environment shows of it; like everyone's it
    is reset to zero at the start of the next episode.
    """

    def __init__(
        self, num_agents: int, inputs: int, size: int, *, shared: bool, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.shared = shared
        groups = 1 if shared else num_agents
        self.weight_input = nn.Parameter(torch.empty(groups, 3 * size, inputs))
        self.weight_hidden = nn.Parameter(torch.empty(groups, 3 * size, size))
        self.bias_input = nn.Parameter(torch.zeros(groups, 3 * size))
        self.bias_hidden = nn.Parameter(torch.zeros(groups, 3 * size))
        for weight in (self.weight_input, self.weight_hidden):
            for gate in weight.data.view(3 * groups, size, -1):
                nn.init.orthogonal_(gate, generator=generator)

    def forward(
        self,
        x: Float[Tensor, "T *B N I"],
        hidden: Float[Tensor, "*B N H"],
        starts: Bool[Tensor, "T *B"],
    ) -> Float[Tensor, "T *B N H"]:
        """Return the hidden state after every step, which is also the output.

        `hidden` is the state before the first step; it is reset before the steps `starts`.

        On a CPU `torch.gru_cell` step by step is as fast as `torch.nn.GRU`, which cannot reset
        at an episode's start. Indexing `x[t]` instead of unbinding would make the gradient's cost
        quadratic in the steps.
        """
        keep = (~starts).to(x.dtype).unsqueeze(-1).unsqueeze(-1)
        hidden_states = []
        for step, kept in zip(x.unbind(0), keep.unbind(0), strict=True):
            hidden = self.step(step, hidden * kept)
            hidden_states.append(hidden)
        return torch.stack(hidden_states)

    def step(
        self, x: Float[Tensor, "*B N I"], hidden: Float[Tensor, "*B N H"]
    ) -> Float[Tensor, "*B N H"]:
        """Return the hidden state after one step."""
        if self.shared:
            return self.cell(0, x.flatten(0, -2), hidden.flatten(0, -2)).view_as(hidden)
        agents = zip(x.flatten(0, -3).unbind(1), hidden.flatten(0, -3).unbind(1), strict=True)
        cells = [self.cell(index, *agent) for index, agent in enumerate(agents)]
        return torch.stack(cells, dim=1).view_as(hidden)

    def cell(self, group: int, x: Tensor, hidden: Tensor) -> Tensor:
        """Return the hidden state after one step of rows with the weights of a group."""
        return torch.gru_cell(
            x,
            hidden,
            self.weight_input[group],
            self.weight_hidden[group],
            self.bias_input[group],
            self.bias_hidden[group],
        )


class RecurrentBody(nn.Module):
    """A tanh network whose second hidden layer (the only one, if there is one) is an `AgentGRU`."""

    def __init__(
        self,
        num_agents: int,
        inputs: int,
        hidden_sizes: tuple[int, ...],
        outputs: int,
        *,
        shared: bool,
        output_gain: float,
        generator: torch.Generator,
        ids_at: int | None = None,
    ) -> None:
        super().__init__()
        self.ids_at = ids_at
        before, after = hidden_sizes[:1], hidden_sizes[2:]
        size = hidden_sizes[min(1, len(hidden_sizes) - 1)]
        self.hidden_shape = (num_agents, size)
        self.before = nn.Sequential()
        if len(hidden_sizes) > 1:
            linear = AgentLinear(
                num_agents,
                inputs,
                before[0],
                shared=shared,
                gain=math.sqrt(2.0),
                generator=generator,
                ids_at=ids_at,
            )
            self.before.extend((linear, Tanh()))
            inputs = before[0]
        elif ids_at is not None:
            inputs += num_agents
        self.gru = AgentGRU(num_agents, inputs, size, shared=shared, generator=generator)
        self.after = agent_mlp(
            num_agents,
            size,
            after,
            outputs,
            shared=shared,
            output_gain=output_gain,
            generator=generator,
        )

    def forward(
        self,
        x: Float[Tensor, "T *B N I"],
        hidden: Float[Tensor, "*B N H"],
        starts: Bool[Tensor, "T *B"],
    ) -> tuple[Float[Tensor, "T *B N A"], Float[Tensor, "T *B N H"]]:
        """Return the outputs of successive steps and the hidden state after each (`AgentGRU`)."""
        hidden_states = self.gru(self._before(x), hidden, starts)
        return self.after(hidden_states), hidden_states

    def step(
        self, x: Float[Tensor, "*B N I"], hidden: Float[Tensor, "*B N H"]
    ) -> tuple[Float[Tensor, "*B N A"], Float[Tensor, "*B N H"]]:
        """Return the outputs of one step and the hidden state after it."""
        hidden = self.gru.step(self._before(x), hidden)
        return self.after(hidden), hidden

    def _before(self, x: Float[Tensor, "*L N I"]) -> Float[Tensor, "*L N H"]:
        """Return what the unit reads."""
        if len(self.before) == 0 and self.ids_at is not None:
            return with_ids(x, self.ids_at)
        return self.before(x)


def initial_hidden(body: nn.Module, num_envs: int) -> Float[Tensor, "E N H"] | None:
    """Return the hidden state at the start of an episode; None for a feed-forward body."""
    if not isinstance(body, RecurrentBody):
        return None
    return body.gru.weight_hidden.new_zeros(num_envs, *body.hidden_shape)
