"""Independent jobs on two threads."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn


class Optimizer:
    """Adam on some parameters, whose gradient is clipped to a norm of its own."""

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        learning_rate: float,
        max_grad_norm: float,
        *,
        eps: float = 1e-8,
    ) -> None:
        self.parameters = list(parameters)
        self.max_grad_norm = max_grad_norm
        self.adam = torch.optim.Adam(self.parameters, lr=learning_rate, eps=eps, fused=True)

    def minimize(self, loss: Tensor) -> None:
        """Take one gradient step on a loss."""
        self.backward(loss)
        self.step()

    def backward(self, loss: Tensor) -> None:
        """Set the parameters' gradient to that of a loss."""
        self.adam.zero_grad(set_to_none=True)
        loss.backward()

    def step(self) -> None:
        """Clip the gradient and take one Adam step."""
        nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm)
        self.adam.step()

    def set_learning_rate(self, learning_rate: float) -> None:
        """Set the step size of the next steps."""
        for group in self.adam.param_groups:
            group["lr"] = learning_rate

    def state_dict(self) -> dict[str, Any]:
        """Return Adam's moments; the parameters belong to their network."""
        return self.adam.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()` of the same kind of parameters."""
        self.adam.load_state_dict(state)


Result = TypeVar("Result")

First = TypeVar("First")
Second = TypeVar("Second")


class SideBySide:
    """Runs jobs that share nothing two at a time on a CPU with threads, else one after the other.

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

    def in_turns(self, jobs: Sequence[Generator[None, None, Result]]) -> list[Result]:
        """Return what every job returns; the threads change jobs wherever one yields.

        So three jobs keep two threads busy to the end.
        """
        waiting = deque(enumerate(jobs))
        results: dict[int, Result] = {}
        work = partial(_take_turns, waiting, results)
        self(work, work)
        return [results[index] for index in range(len(jobs))]


def _take_turns(
    waiting: deque[tuple[int, Generator[None, None, Result]]], results: dict[int, Result]
) -> None:
    """Run the longest waiting job to its next yield, again and again, until none waits."""
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
