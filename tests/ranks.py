"""Processes of a run that are threads of this one."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from marl.utils.ranks import Ranks

Result = TypeVar("Result")


class Exchange:
    """Where the threads meet: each lays a value down and takes those of all."""

    def __init__(self, size: int) -> None:
        self.values: list[Any] = [None] * size
        self.barrier = Barrier(size, timeout=60.0)

    def all(self, rank: int, value: Any) -> list[Any]:
        self.values[rank] = value
        self.barrier.wait()
        values = list(self.values)
        self.barrier.wait()
        return values


class ThreadRanks(Ranks):
    """One of several threads; what they ask for must be the same, in the same order."""

    def __init__(self, rank: int, size: int, exchange: Exchange) -> None:
        super().__init__(rank=rank, size=size)
        object.__setattr__(self, "_exchange", exchange)

    def _all(self, kind: str, value: Any) -> list[Any]:
        exchange: Exchange = self._exchange  # type: ignore[attr-defined]  # a frozen dataclass
        kinds, values = zip(*exchange.all(self.rank, (kind, value)), strict=True)
        assert len(set(kinds)) == 1, f"the processes differ: {kinds}"
        return list(values)

    def sum_(self, tensor: Tensor, group: str) -> Tensor:
        parts = self._all(f"sum {group} {tuple(tensor.shape)}", tensor.detach().clone())
        with torch.no_grad():
            return tensor.copy_(sum(parts))

    def broadcast_(self, module: nn.Module) -> None:
        (first, *_) = self._all("broadcast", module)
        module.load_state_dict({k: v.clone() for k, v in first.state_dict().items()})
        self._all("broadcast", None)

    def any(self, flag: bool) -> bool:
        return any(self._all("any", flag))

    def gather(self, value: object) -> list[Any]:
        return self._all("gather", value)


def in_ranks(size: int, work: Callable[[Ranks], Result]) -> list[Result]:
    """Return what `work` returns in each of several threads, or raise the first's error."""
    exchange = Exchange(size)

    def run(rank: int) -> Result:
        try:
            return work(ThreadRanks(rank, size, exchange))
        except BaseException:
            exchange.barrier.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        futures = [pool.submit(run, rank) for rank in range(size)]
    return [future.result() for future in futures]
