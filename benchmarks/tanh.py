"""The hidden units' tanh: PyTorch's own against 2 sigmoid(2x) - 1, forward and backward.

    python -m benchmarks.tanh

Interleaved, and the best of many rounds, so that what else runs on the machine matters little.
PyTorch's own comes from MKL on x86 processors, whose numbers and speed depend on who made the
processor; the sigmoid is PyTorch's vectorised code everywhere.
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from marl.nn.layers import Tanh
from marl.utils.origin import machine

SHAPES = {"acting, 16 x 2 x 64": (16, 2, 64), "minibatch, 4,000 x 64": (4000, 64)}
"""Acting is the forward pass alone."""


def seconds(function: Callable[[Tensor], Tensor], x: Tensor, repeats: int) -> float:
    """Return the seconds of one forward pass and, with a gradient, its backward pass."""
    ones = torch.ones_like(x)
    began = time.perf_counter()
    for _ in range(repeats):
        y = function(x)
        if y.requires_grad:
            y.backward(ones)
    return (time.perf_counter() - began) / repeats


def main() -> None:
    """Print a table of ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=21)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"Command: `python -m benchmarks.tanh` {machine()}; best of {options.rounds} rounds.\n")
    print("| shape | torch.tanh, us | sigmoid, us | ratio |")
    print("| --- | --- | --- | --- |")
    for name, shape in SHAPES.items():
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        x.requires_grad_(name.startswith("minibatch"))
        repeats = max(1, 800_000 // x.numel())
        ours = Tanh()
        pairs = [
            (seconds(torch.tanh, x, repeats), seconds(ours, x, repeats))
            for _ in range(options.rounds)
        ]
        theirs, mine = (1e6 * min(times) for times in zip(*pairs, strict=True))
        print(f"| {name} | {theirs:,.1f} | {mine:,.1f} | {theirs / mine:.2f} |")


if __name__ == "__main__":
    main()
