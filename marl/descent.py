"""Gradient descent with clipping."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


class Descent:
    """Parameters with their own optimiser (Adam) and their own gradient clipping."""

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
        self.optimiser = torch.optim.Adam(self.parameters, lr=learning_rate, eps=eps, fused=True)

    def step(self, loss: Tensor) -> None:
        """Take one gradient step."""
        self.differentiate(loss)
        self.optimiser.step()

    def differentiate(self, loss: Tensor) -> None:
        """Leave the clipped gradient of a loss in the parameters, for `optimiser.step`."""
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm)

    def set_learning_rate(self, learning_rate: float) -> None:
        """Set the step size of the next steps."""
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate

    def state_dict(self) -> dict[str, Any]:
        """Return the optimiser; the parameters belong to their network."""
        return self.optimiser.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()` of the same kind of parameters."""
        self.optimiser.load_state_dict(state)
