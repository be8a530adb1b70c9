"""Agreement between the processes that train one run, each on as many environments of its own.

Whatever must be the same everywhere goes through one `Ranks`: gradients, the statistics of
normalisers and advantages, and decisions that lead to a collective operation or away from one.
Every process calls the same methods in the same order, from one thread, whatever its own data say.
`marl.utils.distributed` joins processes that torchrun has started.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from marl import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn


class PeerError(UserError):
    """Another process of the run has failed, and all know it; its own error says why."""


class LostError(UserError):
    """The other processes cannot be reached any more."""


@dataclass(frozen=True)
class Ranks:
    """The processes of a run. This class is one process alone: all of it is the identity."""

    rank: int = 0
    """This process's number, from 0."""
    size: int = 1
    """Number of processes."""
    local_rank: int = 0
    """Number among the processes of this machine."""
    local_size: int = 1
    """Number of processes on this machine."""

    @staticmethod
    def single() -> "Ranks":
        """Return the ranks of a run in one process."""
        return Ranks()

    def sum_(self, tensor: "Tensor", group: str) -> "Tensor":
        """Replace a tensor by its sum over all processes, and return it.

        `group` says what is summed; it is the same in all processes.
        """
        return tensor

    def broadcast_(self, module: "nn.Module") -> None:
        """Replace the parameters and buffers of a module by those of process 0."""

    def any(self, flag: bool) -> bool:
        """Return whether the flag is true in any process."""
        return flag

    def gather(self, value: object) -> list[Any]:
        """Return the values of all processes, by rank.

        They nest dicts, lists and tuples around tensors, arrays, numbers, strings and None.
        """
        return [value]


SINGLE = Ranks.single()


def mean_over_ranks(ranks: Ranks, value: "Tensor", group: str) -> "Tensor":
    """Return the mean of a tensor over all processes."""
    return value if ranks.size == 1 else ranks.sum_(value.clone(), group) / ranks.size


def mean_metrics(ranks: Ranks, metrics: dict[str, float], weight: float = 1.0) -> dict[str, float]:
    """Return the means of the metrics over the processes that have them, by their weights.

    NaN counts nowhere. A metric that no process knows is NaN.
    """
    if ranks.size == 1:
        return metrics
    parts = ranks.gather([weight, metrics])
    means = {}
    for name in dict.fromkeys(name for _, part in parts for name in part):
        known = [
            (share, part[name])
            for share, part in parts
            if share and not math.isnan(part.get(name, math.nan))
        ]
        total = sum(share for share, _ in known)
        means[name] = sum(share * x for share, x in known) / total if known else math.nan
    return means


def merge_moments(
    ranks: Ranks, count: "Tensor", mean: "Tensor", var: "Tensor", group: str
) -> tuple["Tensor", "Tensor", "Tensor"]:
    """Return count, mean and variance of the rows of all processes (Chan et al. 1979).

    Given are those of each process's own rows; a process without rows has count 0.
    """
    if ranks.size == 1:
        return count, mean, var
    rows = count.double()
    total = ranks.sum_(rows.clone(), group)
    merged = ranks.sum_(rows * mean, group) / total.clamp(min=1.0)
    squares = ranks.sum_(rows * (var + (mean - merged) ** 2), group)
    return (
        total.to(count.dtype),
        merged.to(mean.dtype),
        (squares / total.clamp(min=1.0)).to(var.dtype),
    )


@contextmanager
def together(ranks: Ranks) -> Iterator[None]:
    """Raise in every process if the block, which holds no collective operation, raises in one.

    `is_shared` tells such errors from those that one process alone knows.
    """
    try:
        yield
    except BaseException as error:
        ranks.any(True)
        if ranks.size > 1:
            vars(error)["is_shared"] = True
        raise
    if ranks.any(False):
        raise PeerError("another process of this run has failed; its own error says why")


def is_shared(error: BaseException) -> bool:
    """Return whether all processes have stopped for the same reason, at the same place."""
    if isinstance(error, PeerError) or vars(error).get("is_shared"):
        return True
    return error.__cause__ is not None and is_shared(error.__cause__)
