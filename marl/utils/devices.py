"""What the computation runs on: the device of the networks, and two threads of a CPU."""

from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import torch

from marl.config import ConfigError

First = TypeVar("First")
Second = TypeVar("Second")
Result = TypeVar("Result")


def usable_device(name: str) -> torch.device:
    """Return the device that the setting `device` names; `ConfigError` if it is not there."""
    device = torch.device(name)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= count:
        there = f"{count} GPU{'s' if count > 1 else ''}, cuda:0 first" if count else "no GPU"
        raise ConfigError(
            f"device: got {name!r}, but PyTorch {torch.__version__} finds {there}; set device = "
            '"cpu", or install a PyTorch with CUDA and a driver for it'
        )
    return device


def single_threaded_operations() -> None:
    """Keep PyTorch's operations of this process on one thread each; for commands.

    Here matrices are small, so that threads inside an operation cost more than they save.
    """
    torch.set_num_threads(1)


class TwoThreads:
    """Runs independent jobs on two threads if there are as many, else one after the other.

    PyTorch releases Python's lock inside its operations, so two threads overlap; each job keeps
    its own order of operations, so the numbers do not depend on the threads.
    """

    def __init__(self, threads: int, device: torch.device) -> None:
        # A new thread has MKL's own number of threads until PyTorch looks at its: products would
        # round otherwise there.
        self._pool = (
            ThreadPoolExecutor(1, initializer=torch.get_num_threads)
            if threads > 1 and device.type == "cpu"
            else None
        )

    def both(
        self, first: Callable[[], First], second: Callable[[], Second]
    ) -> tuple[First, Second]:
        """Return the results of two jobs; an error of either is raised after both have ended."""
        if self._pool is None:
            return first(), second()
        future = self._pool.submit(second)
        try:
            result = first()
        finally:
            future.exception()
        return result, future.result()

    def in_turns(self, jobs: Sequence[Generator[None, None, Result]]) -> list[Result]:
        """Return the result of every job; a thread changes jobs wherever one yields.

        So three jobs keep two threads busy to the end.
        """
        waiting = deque(enumerate(jobs))
        results: dict[int, Result] = {}
        work = partial(_take_turns, waiting, results)
        self.both(work, work)
        return [results[index] for index in range(len(jobs))]


def _take_turns(
    waiting: deque[tuple[int, Generator[None, None, Result]]], results: dict[int, Result]
) -> None:
    """Run the job that has waited longest to its next yield, until none waits."""
    while waiting:
        try:
            index, job = waiting.popleft()
        except IndexError:  # the other thread was faster
            return
        try:
            next(job)
        except StopIteration as end:
            results[index] = end.value
        else:
            waiting.append((index, job))
