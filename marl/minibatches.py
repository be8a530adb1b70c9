"""The rows that gradient steps are taken on: steps or, with memory, chunks of steps.

Axes: T time, E environments, L steps of a chunk, C chunks, R rows, B of them in a minibatch,
M memories of a network (one, or one an agent), H units of memory.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from marl.memory import Past


@dataclass(frozen=True, kw_only=True)
class Rows:
    """A rollout cut into rows: row t * E + e is step (or chunk) t of copy e."""

    tensors: dict[str, Tensor]
    """By name, (T * E, ...); with memory (L, C * E, ...)."""
    memory: Float[Tensor, "R M H"] | None
    """Memory before each chunk; no gradient goes further back. None: rows are steps."""

    def take(self, order: Int64[Tensor, "B"]) -> tuple[dict[str, Tensor], Past | None]:
        """Return some rows, and what a network with memory needs to read them."""
        if self.memory is None:
            return {name: tensor[order] for name, tensor in self.tensors.items()}, None
        batch = {name: tensor.index_select(1, order) for name, tensor in self.tensors.items()}
        return batch, Past(memory=self.memory[order], starts=batch["starts"])


def step_rows(**tensors: Tensor | None) -> Rows:
    """Return those (T, E, ...) tensors that there are, every step of every copy a row."""
    flat = {name: tensor.flatten(0, 1) for name, tensor in tensors.items() if tensor is not None}
    return Rows(tensors=flat, memory=None)


def chunk_rows(
    memory: Float[Tensor, "C E M H"],
    starts: Bool[Tensor, "T E"],
    length: int,
    *,
    present: Tensor | None,
    **tensors: Tensor | None,
) -> Rows:
    """Return those (T, E, ...) tensors that there are, every `length` steps of a copy a row.

    Where T is no multiple of `length` the last chunks are filled up with steps not `present`.
    """
    chunks = {"starts": starts, "present": present} | tensors
    return Rows(
        tensors={name: chunked(x, length) for name, x in chunks.items() if x is not None},
        memory=memory.flatten(0, 1),
    )


def chunked(tensor: Tensor, length: int) -> Tensor:
    """Return a (T, E, ...) tensor as (L, C * E, ...), zero (False) beyond T."""
    missing = -len(tensor) % length
    if missing:
        tensor = torch.cat((tensor, tensor.new_zeros(missing, *tensor.shape[1:])))
    return tensor.unflatten(0, (-1, length)).transpose(0, 1).flatten(1, 2)
