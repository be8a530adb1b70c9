"""Gated recurrent units for a team: memory of what an episode has shown so far.

Axes: T time, E environments, N agents, I input features, H units, A outputs; G sets of
weights, 1 if shared and else N; ``*B`` the axes between time and agents.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from marl.nn.layers import AgentLinear, Tanh, agent_mlp


@dataclass(frozen=True, kw_only=True)
class Past:
    """What a network with memory reads beside its inputs."""

    memory: Float[Tensor, "*B N H"]
    """Memory before the first step."""
    starts: Bool[Tensor, "T *B"]
    """Steps at which an episode starts: the memory is zero there."""


class AgentGRU(nn.Module):
    """A gated recurrent unit (Cho et al. 2014) of every agent, with shared weights or its own.

    A dead agent's memory goes on with what the environment shows of it; like everyone's it is
    zero again when the next episode starts.
    """

    def __init__(
        self, num_agents: int, inputs: int, size: int, *, shared: bool, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.shared = shared
        groups = 1 if shared else num_agents
        self.weight_input = nn.Parameter(torch.empty(groups, 3 * size, inputs))
        self.weight_memory = nn.Parameter(torch.empty(groups, 3 * size, size))
        self.bias_input = nn.Parameter(torch.zeros(groups, 3 * size))
        self.bias_memory = nn.Parameter(torch.zeros(groups, 3 * size))
        for weight in (self.weight_input, self.weight_memory):
            for gate in weight.data.view(3 * groups, size, -1):
                nn.init.orthogonal_(gate, generator=generator)

    def forward(self, x: Float[Tensor, "T *B N I"], past: Past) -> Float[Tensor, "T *B N H"]:
        """Return the memory after every step, which is also the output.

        On a CPU `torch.gru_cell` step by step is as fast as `torch.nn.GRU`, which cannot forget
        at an episode's start; a gradient written by hand saved 10 to 20 % of it. Indexing `x[t]`
        instead of unbinding would make the gradient's cost quadratic in the steps.
        """
        keep = (~past.starts).to(x.dtype).unsqueeze(-1).unsqueeze(-1)
        memory, memories = past.memory, []
        for step, kept in zip(x.unbind(0), keep.unbind(0), strict=True):
            memory = self.step(step, memory * kept)
            memories.append(memory)
        return torch.stack(memories)

    def step(
        self, x: Float[Tensor, "*B N I"], memory: Float[Tensor, "*B N H"]
    ) -> Float[Tensor, "*B N H"]:
        """Return the memory after one step."""
        if self.shared:
            return self._cell(0, x.flatten(0, -2), memory.flatten(0, -2)).view_as(memory)
        agents = zip(x.flatten(0, -3).unbind(1), memory.flatten(0, -3).unbind(1), strict=True)
        cells = [self._cell(index, *agent) for index, agent in enumerate(agents)]
        return torch.stack(cells, dim=1).view_as(memory)

    def _cell(self, group: int, x: Tensor, memory: Tensor) -> Tensor:
        return torch.gru_cell(
            x,
            memory,
            self.weight_input[group],
            self.weight_memory[group],
            self.bias_input[group],
            self.bias_memory[group],
        )


class RecurrentBody(nn.Module):
    """A tanh network whose second hidden layer (the only one, if there is one) is an `AgentGRU`."""

    def __init__(
        self,
        num_agents: int,
        inputs: int,
        hidden: tuple[int, ...],
        outputs: int,
        *,
        shared: bool,
        output_gain: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        before, size, after = hidden[:1], hidden[min(1, len(hidden) - 1)], hidden[2:]
        self.memory_shape = (num_agents, size)
        self.before = nn.Sequential()
        if len(hidden) > 1:
            linear = AgentLinear(
                num_agents,
                inputs,
                before[0],
                shared=shared,
                gain=math.sqrt(2.0),
                generator=generator,
            )
            self.before.extend((linear, Tanh()))
            inputs = before[0]
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
        self, x: Float[Tensor, "T *B N I"], past: Past
    ) -> tuple[Float[Tensor, "T *B N A"], Float[Tensor, "T *B N H"]]:
        """Return the outputs of successive steps and the memory after each."""
        memories = self.gru(self.before(x), past)
        return self.after(memories), memories

    def step(
        self, x: Float[Tensor, "*B N I"], memory: Float[Tensor, "*B N H"]
    ) -> tuple[Float[Tensor, "*B N A"], Float[Tensor, "*B N H"]]:
        """Return the outputs of one step and the memory after it."""
        memory = self.gru.step(self.before(x), memory)
        return self.after(memory), memory


def initial_memory(body: nn.Module, rows: int) -> Float[Tensor, "E N H"] | None:
    """Return the memory of `rows` teams that start an episode; None for a body without."""
    if not isinstance(body, RecurrentBody):
        return None
    return body.gru.weight_memory.new_zeros(rows, *body.memory_shape)
