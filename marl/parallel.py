"""Independent jobs on two threads."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

First = TypeVar("First")
Second = TypeVar("Second")


class SideBySide:
    """Runs two jobs that share nothing at once on a CPU with threads, else one after the other.

    PyTorch releases Python's lock inside its operations, so two threads overlap; each job keeps
    its own order of operations, so the numbers do not depend on the threads.
    """

    def __init__(self, threads: int, device: torch.device) -> None:
        self._pool = ThreadPoolExecutor(1) if threads > 1 and device.type == "cpu" else None

    def __call__(
        self, first: Callable[[], First], second: Callable[[], Second]
    ) -> tuple[First, Second]:
        """Return what both jobs return; an error of either is raised after both have ended."""
        if self._pool is None:
            return first(), second()
        future = self._pool.submit(second)
        try:
            result = first()
        finally:
            future.exception()
        return result, future.result()
