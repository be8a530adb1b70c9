"""What a team remembers while it acts.

Axes: T time, E environments, N agents, C chunks, I input features, A actions, H units of memory.
"""

from jaxtyping import Bool, Float
from torch import Tensor

from marl.actors import Actor


class ActingMemory:
    """The actors' memory from step to step, and what each rollout keeps of it for the update.

    An actor without memory leaves all of it None. The tensors of a rollout are reused by the next.
    """

    def __init__(self, num_steps: int, chunk_length: int) -> None:
        self.num_steps = num_steps
        self.chunk_length = chunk_length
        self.memory: Float[Tensor, "E N H"] | None = None
        self.chunk_memory: Float[Tensor, "C E N H"] | None = None
        """Memory before the first step of every chunk."""
        self.parameters: Float[Tensor, "T E N A"] | None = None
        """What the actor put out at every step."""

    def begin(self, actor: Actor, num_envs: int) -> None:
        """Start a rollout: with the memory of the last one, or of teams that know nothing."""
        if self.memory is None:
            self.memory = actor.initial_memory(num_envs)
        if self.memory is not None and self.chunk_memory is None:
            chunks = -(-self.num_steps // self.chunk_length)
            self.chunk_memory = self.memory.new_zeros(chunks, *self.memory.shape)

    def step(self, actor: Actor, t: int, obs: Float[Tensor, "E N I"]) -> Float[Tensor, "E N A"]:
        """Return the actor's parameters at step `t`."""
        if self.memory is None or self.chunk_memory is None:
            return actor(obs)
        if t % self.chunk_length == 0:
            self.chunk_memory[t // self.chunk_length] = self.memory
        parameters, self.memory = actor.step(self.memory, obs)
        if self.parameters is None:
            self.parameters = parameters.new_zeros(self.num_steps, *parameters.shape)
        self.parameters[t] = parameters
        return parameters

    def forget(self, done: Bool[Tensor, "E"]) -> None:
        """Reset the memory of copies whose episode has ended."""
        if self.memory is not None:
            self.memory = self.memory.masked_fill(done.to(self.memory.device).view(-1, 1, 1), 0.0)
