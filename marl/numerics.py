"""Small pieces of arithmetic that several parts need.

Axes: ``*L`` any leading axes.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


class NonFiniteError(RuntimeError):
    """A tensor that training depends on holds NaN or infinity."""


def masked_mean(x: Float[Tensor, "*L"], present: Bool[Tensor, "*L"] | None) -> Tensor:
    """Return the mean over present rows; zero, with zero gradient, where none is."""
    if present is None:
        return x.mean()
    return x.where(present, torch.zeros_like(x)).sum() / present.sum().clamp(min=1)


def check_finite(**tensors: Tensor) -> None:
    """Raise `NonFiniteError` naming the first tensor that holds NaN or infinity."""
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise NonFiniteError(
                f"{name} holds NaN or infinity; the run is stopped with its state saved. "
                "A smaller learning rate or gradient norm, or a check of the environment "
                "(marl check), usually helps"
            )


def correlation(x: Tensor, y: Tensor, present: Tensor | None = None) -> Tensor:
    """Return Pearson's correlation after broadcasting y to the shape of x, where present."""
    y = y.expand_as(x)
    if present is not None:
        x, y = x[present], y[present]
    x, y = x - x.mean(), y - y.mean()
    return (x * y).mean() / ((x**2).mean() * (y**2).mean()).sqrt().clamp(min=1e-12)
