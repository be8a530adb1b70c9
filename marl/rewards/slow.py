"""Slow copies: the decisive stabiliser of an implicit reward."""

import torch
from torch import Tensor, nn


@torch.no_grad()
def follow(fast: nn.Module, slow: nn.Module, rate: float) -> Tensor:
    """Move a slow copy towards its original, slow += rate (fast - slow); return their distance.

    The distance is the Euclidean norm over all parameters, after the move.
    """
    gaps: list[Tensor] = []
    for there, here in zip(fast.parameters(), slow.parameters(), strict=True):
        here.lerp_(there, rate)
        gaps.append((there - here).norm())
    return torch.stack(gaps).norm()
