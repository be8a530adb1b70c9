"""A rollout cut into rows, and the minibatches of an update.

Axes: T time, E environments; L steps of a chunk, C chunks, M hidden states of a network (1 or N), H
hidden units. Minibatches consist of B of R rows: a row is a step of one environment or, of
recurrent networks, a chunk of successive steps.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from marl.utils.ranks import Ranks

Epoch = Sequence[Int64[Tensor, "_"]]
"""The rows of every minibatch of an epoch."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """A rollout cut into rows: row t * E + e is step (or chunk) t of environment e."""

    tensors: dict[str, Tensor]
    """By name, (T * E, ...); recurrent (L, C * E, ...)."""
    hidden: Float[Tensor, "R M H"] | None
    """Hidden state before each chunk; no gradient goes further back. None: rows are steps."""

    @property
    def count(self) -> int:
        """R, the number of rows."""
        return next(iter(self.tensors.values())).shape[0 if self.hidden is None else 1]

    def mean_counts(self, epochs: Sequence[Epoch], ranks: Ranks) -> Tensor | None:
        """Return `mean_count` of every minibatch in turn, all from one exchange; None: no mask."""
        present = self.tensors.get("present")
        if present is None:
            return None
        axis = 0 if self.hidden is None else 1
        counts = [present.index_select(axis, rows).sum() for epoch in epochs for rows in epoch]
        return ranks.sum_(torch.stack(counts), "rows").clamp(min=1) / ranks.size

    def minibatches(self, epoch: Epoch) -> Iterator[dict[str, Tensor]]:
        """Yield the rows of every minibatch; steps are gathered once for the whole epoch."""
        if self.hidden is not None:
            yield from map(self.take, epoch)
            return
        shuffled = self.take(torch.cat(list(epoch)))
        sizes = [len(order) for order in epoch]
        parts = [tensor.split(sizes) for tensor in shuffled.values()]
        for batch in zip(*parts, strict=True):
            yield dict(zip(shuffled, batch, strict=True))

    def take(self, order: Int64[Tensor, "B"]) -> dict[str, Tensor]:
        """Return some rows; with recurrent networks also ``hidden``, the state before them."""
        if self.hidden is None:
            return {name: tensor[order] for name, tensor in self.tensors.items()}
        batch = {name: tensor.index_select(1, order) for name, tensor in self.tensors.items()}
        return batch | {"hidden": self.hidden[order]}


def step_rows(**tensors: Tensor | None) -> Rows:
    """Return those (T, E, ...) tensors that there are, every step a row."""
    flat = {name: tensor.flatten(0, 1) for name, tensor in tensors.items() if tensor is not None}
    return Rows(tensors=flat, hidden=None)


def chunk_rows(
    hidden: Float[Tensor, "C E M H"],
    starts: Bool[Tensor, "T E"],
    length: int,
    *,
    present: Tensor | None,
    **tensors: Tensor | None,
) -> Rows:
    """Return those (T, E, ...) tensors that there are, every `length` steps a row.

    Where T is no multiple of `length` the last chunks are filled up with steps not `present`.
    """
    chunks = {"starts": starts, "present": present} | tensors
    return Rows(
        tensors={name: chunked(x, length) for name, x in chunks.items() if x is not None},
        hidden=hidden.flatten(0, 1),
    )


def chunked(tensor: Tensor, length: int) -> Tensor:
    """Return a (T, E, ...) tensor as (L, C * E, ...), zero (False) beyond T."""
    missing = -len(tensor) % length
    if missing:
        tensor = torch.cat((tensor, tensor.new_zeros(missing, *tensor.shape[1:])))
    return tensor.unflatten(0, (-1, length)).transpose(0, 1).flatten(1, 2)


def unchunked(tensor: Tensor, shape: torch.Size) -> Tensor:
    """Return the (T, E, ...) tensor of which `chunked` has made (L, C * E, ...)."""
    num_steps, num_envs = shape
    steps = tensor.unflatten(1, (-1, num_envs)).transpose(0, 1).flatten(0, 1)
    return steps[:num_steps]
