"""Processes of a run that are threads of this one."""

from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Condition
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from marl.utils.ranks import LostError, Ranks

Result = TypeVar("Result")


class Exchange:
    """Where the threads meet: each lays a value down and takes those of all."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.has_failed = False
        self._changed = Condition()
        self._turns = [0] * size
        self._values: dict[int, dict[int, Any]] = defaultdict(dict)

    def all(self, rank: int, value: Any) -> list[Any]:
        """Return what all threads lay down in this turn; `LostError` if one of them has failed."""
        with self._changed:
            turn = self._turns[rank]
            self._turns[rank] += 1
            self._values.pop(turn - 2, None)  # nobody can be so far behind
            values = self._values[turn]
            values[rank] = value
            self._changed.notify_all()
            self._changed.wait_for(lambda: len(values) == self.size or self.has_failed, 60.0)
            if len(values) < self.size:
                raise LostError("another thread has ended")
            return [values[rank] for rank in range(self.size)]

    def fail(self) -> None:
        """Let the threads that wait for this one end."""
        with self._changed:
            self.has_failed = True
            self._changed.notify_all()


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
    """Return what `work` returns in each of several threads, or raise the error that came first.

    That is the first that is no `LostError`, by rank.
    """
    exchange = Exchange(size)

    def run(rank: int) -> Result:
        try:
            return work(ThreadRanks(rank, size, exchange))
        except BaseException:
            exchange.fail()
            raise

    with ThreadPoolExecutor(size) as pool:
        futures = [pool.submit(run, rank) for rank in range(size)]
    errors = [error for future in futures if (error := future.exception()) is not None]
    for error in sorted(errors, key=lambda error: isinstance(error, LostError)):
        raise error
    return [future.result() for future in futures]
