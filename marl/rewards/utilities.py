"""The networks of the local utilities, with or without memory of the episode.

Axes: T time, N agents, I input features, H units of memory; ``*B`` the axes beside time and
``*L`` any leading axes.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from envs import EnvSpec
from marl.config import ConfigError, RewardConfig
from marl.memory import Past, RecurrentBody, initial_memory
from marl.networks import agent_mlp
from marl.types import History

LONGEST_REMEMBERED = 500
"""Steps of the longest episodes that a reward with memory is fitted on: it reads whole ones."""


def make_utility(
    spec: EnvSpec, config: RewardConfig, inputs: int, generator: torch.Generator
) -> nn.Module:
    """Return a network of one number per agent, with memory if the configuration says so."""
    if config.memory == "gru" and spec.max_steps > LONGEST_REMEMBERED:
        raise ConfigError(
            f'reward.memory: "gru" reads whole episodes, of at most {LONGEST_REMEMBERED} steps, '
            f"and those of {spec.name} have up to {spec.max_steps}; give the environment a smaller "
            'max_steps or set reward.memory = "none"'
        )
    body = RecurrentBody if config.memory == "gru" else agent_mlp
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
    """Return a network's utilities and what it remembers after each step; None without memory.

    `name` is the network's in `History.memory`.
    """
    if not isinstance(body, RecurrentBody):
        return body(x).squeeze(-1), None
    if history is None:
        raise ValueError(
            "a reward model with memory got Transitions without history; it reads the steps of "
            "episodes in their order, so say in Transitions.history which follow which"
        )
    axis = history.time_axis
    x, starts = x.movedim(axis, 0), history.starts.movedim(axis, 0)
    memory = None if history.memory is None else history.memory[name]
    if memory is None:
        nothing = initial_memory(body, starts[0].numel())
        assert nothing is not None
        memory = nothing.view(*starts.shape[1:], *nothing.shape[1:])
    outputs, memories = body(x, Past(memory=memory, starts=starts))
    return outputs.squeeze(-1).movedim(0, axis), memories.movedim(0, axis)


def read_next(
    body: nn.Module,
    x: Float[Tensor, "*L N I"],
    next_x: Float[Tensor, "*L N I"],
    history: History | None,
    name: str,
) -> tuple[Float[Tensor, "*L N"], Float[Tensor, "*L N H"] | None]:
    """Return the utilities of what every step led to, and what is remembered after each step.

    What a step led to is read with the memory of the episode up to that step.
    """
    if not isinstance(body, RecurrentBody):
        return body(next_x).squeeze(-1), None
    _, memories = read(body, x, history, name)
    assert memories is not None
    return body.step(next_x, memories)[0].squeeze(-1), memories
