"""Matrix products and tanh in given memory, without gradients: NumPy's where they are faster.

PyTorch takes both from MKL, which on AMD's processors leaves half of their width unused and is slow
where a matrix is narrow. NumPy takes products from OpenBLAS, which has no favourites, and has a
tanh of its own. Products are NumPy's on AMD's processors if each keeps to one thread
(`envs.processor`), tanh is on all; the numbers differ by rounding. On GPUs all are PyTorch's.

Axes: R rows, I inner, C columns.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from envs.processor import PREFERS_NUMPY


def _has_openblas() -> bool:
    """Return whether OpenBLAS is what NumPy was built with."""
    built = np.show_config("dicts").get("Build Dependencies", {})
    return "openblas" in built.get("blas", {}).get("name", "")


BY_NUMPY = PREFERS_NUMPY and _has_openblas()
"""Whether products in the memory of the CPU are NumPy's."""
LEAST = 16_384
"""Numbers of the first matrix from which they are; PyTorch's calls cost less."""


def _is_numpys(a: Tensor) -> bool:
    """Return whether NumPy multiplies this matrix by another."""
    return BY_NUMPY and a.is_cpu and a.numel() >= LEAST


def product(
    a: Float[Tensor, "R I"], b: Float[Tensor, "I C"], out: Float[Tensor, "R C"]
) -> Float[Tensor, "R C"]:
    """Write a b into `out` and return it."""
    if not _is_numpys(a):
        return torch.mm(a, b, out=out)
    if a.shape[1] == 1:  # NumPy does not leave this to OpenBLAS
        return torch.mul(a, b, out=out)
    with np.errstate(all="ignore"):  # what is not finite is told where it does harm
        np.matmul(_array(a), _array(b), out=_array(out))
    return out


def new_product(a: Float[Tensor, "R I"], b: Float[Tensor, "I C"]) -> Float[Tensor, "R C"]:
    """Return a b in new memory."""
    return product(a, b, a.new_empty(a.shape[0], b.shape[1]))


def affine(
    bias: Float[Tensor, "C"],
    a: Float[Tensor, "R I"],
    b: Float[Tensor, "I C"],
    out: Float[Tensor, "R C"],
) -> Float[Tensor, "R C"]:
    """Write a b + bias into `out` and return it."""
    if not _is_numpys(a):
        return torch.addmm(bias, a, b, out=out)
    return product(a, b, out).add_(bias)


def add_product(
    into: Float[Tensor, "R C"], a: Float[Tensor, "R I"], b: Float[Tensor, "I C"]
) -> Float[Tensor, "R C"]:
    """Add a b to `into` and return it."""
    if not _is_numpys(a):
        return into.addmm_(a, b)
    return into.add_(new_product(a, b))


def tanh_(x: Float[Tensor, "*L"]) -> Float[Tensor, "*L"]:
    """Replace x by its tanh and return it."""
    if not x.is_cpu:
        return x.tanh_()
    array = _array(x)
    np.tanh(array, out=array)
    return x


def _array(x: Tensor) -> np.ndarray:
    """Return the memory of a tensor."""
    array: np.ndarray = x.detach().numpy()
    return array
