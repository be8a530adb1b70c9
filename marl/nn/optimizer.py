"""Adam with clipping on the parameters of one network."""

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

from marl.utils.checkpoint import copy_saved
from marl.utils.ranks import SINGLE, Ranks

_BETAS = (0.9, 0.999)  # decay of the two moments, Adam's usual ones


class Optimizer:
    """Adam on some parameters, whose gradient is clipped to a norm of its own.

    Parameters, gradients and moments of one kind of number are one vector each; what the modules
    hold are views of it, so a step costs one norm and one fused Adam call however many layers
    there are. Gradients are kept, not set to None: ``parameter.grad`` may be written in place.

    PyTorch's Adam is called as a function: building its class takes seconds, which import the
    compiler.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        learning_rate: float,
        max_grad_norm: float,
        *,
        eps: float = 1e-8,
        ranks: Ranks = SINGLE,
    ) -> None:
        self.ranks = ranks
        self.parameters = list(parameters)
        self.max_grad_norm = max_grad_norm
        kinds = dict.fromkeys((p.dtype, p.device) for p in self.parameters)
        self.vectors = [
            flattened([p for p in self.parameters if (p.dtype, p.device) == kind]) for kind in kinds
        ]
        self.gradients = [parameter.grad for parameter in self.parameters]
        self.learning_rate, self.eps = learning_rate, eps
        self._means = [torch.zeros_like(vector.data) for vector in self.vectors]
        self._squares = [torch.zeros_like(vector.data) for vector in self.vectors]
        self._steps = [torch.zeros((), device=vector.device) for vector in self.vectors]

    def __deepcopy__(self, memo: dict[int, Any]) -> "Optimizer":
        """Return an optimizer of the copied parameters; plain copies would not be its views."""
        parameters = [copy.deepcopy(parameter, memo) for parameter in self.parameters]
        other = Optimizer(
            parameters, self.learning_rate, self.max_grad_norm, eps=self.eps, ranks=self.ranks
        )
        other.load_state_dict(self.state_dict())
        memo[id(self)] = other
        return other

    def minimize(self, loss: Tensor) -> None:
        """Take one gradient step on a loss."""
        self.backward(loss)
        self.step()

    def backward(self, loss: Tensor) -> None:
        """Set the parameters' gradient to that of a loss."""
        self.zero_grad()
        loss.backward()

    def zero_grad(self) -> None:
        """Set the parameters' gradient to zero."""
        for vector in self.vectors:
            assert vector.grad is not None
            vector.grad.zero_()
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = gradient  # `zero_grad` of a module may have taken it away

    @torch.no_grad()
    def step(self, *, is_mean: bool = False) -> None:
        """Take one Adam step on the mean gradient of all processes, clipped.

        With `is_mean`, `average_gradients` has found it already.
        """
        if not is_mean:
            average_gradients(self.ranks, [self])
        gradients = [vector.grad for vector in self.vectors if vector.grad is not None]
        norms = torch.stack([torch.linalg.vector_norm(gradient) for gradient in gradients])
        scale = (self.max_grad_norm / (norms.norm() + 1e-6)).clamp_(max=1.0)
        for gradient in gradients:
            gradient.mul_(scale)
        adam(
            self.vectors,  # type: ignore[arg-type]  # parameters are tensors
            gradients,
            self._means,
            self._squares,
            [],
            self._steps,
            fused=True,
            amsgrad=False,
            beta1=_BETAS[0],
            beta2=_BETAS[1],
            lr=self.learning_rate,
            weight_decay=0.0,
            eps=self.eps,
            maximize=False,
        )

    def set_learning_rate(self, learning_rate: float) -> None:
        """Set the step size of the next steps."""
        self.learning_rate = learning_rate

    def state_dict(self) -> dict[str, Any]:
        """Return Adam's moments and step counts; the parameters belong to their network."""
        return {
            "learning_rate": self.learning_rate,
            "means": self._means,
            "squares": self._squares,
            "steps": self._steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()` of the same kind of parameters."""
        self.learning_rate = float(state["learning_rate"])
        for name in ("means", "squares", "steps"):
            for own, saved in zip(getattr(self, f"_{name}"), state[name], strict=True):
                copy_saved(own, saved)


@torch.no_grad()
def average_gradients(ranks: Ranks, optimizers: Sequence[Optimizer]) -> None:
    """Replace the gradients by their means over all processes, which are found in one exchange."""
    if ranks.size == 1:
        return
    gradients = [v.grad for one in optimizers for v in one.vectors if v.grad is not None]
    for kind in dict.fromkeys((gradient.dtype, gradient.device) for gradient in gradients):
        alike = [gradient for gradient in gradients if (gradient.dtype, gradient.device) == kind]
        mean = ranks.sum_(torch.cat(alike), "gradients").div_(ranks.size)
        sizes = [len(gradient) for gradient in alike]
        for gradient, own in zip(alike, mean.split(sizes), strict=True):
            gradient.copy_(own)


def flattened(parameters: list[nn.Parameter]) -> nn.Parameter:
    """Return one vector with its gradient (zero), of which the parameters are views from now on."""
    vector = nn.Parameter(torch.cat([parameter.detach().flatten() for parameter in parameters]))
    vector.grad = torch.zeros_like(vector)
    begin = 0
    for parameter in parameters:
        span = slice(begin, begin + parameter.numel())
        parameter.data = vector.data[span].view_as(parameter)
        parameter.grad = vector.grad[span].view_as(parameter)
        begin = span.stop
    return vector
