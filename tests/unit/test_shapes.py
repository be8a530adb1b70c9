"""The check of shapes that all other tests run with can fail."""

import pytest
import torch
from jaxtyping import Float, TypeCheckError, jaxtyped
from torch import Tensor

from tests.shapes import checked


@jaxtyped(typechecker=checked)
def mean(values: Float[Tensor, "E N"], result: Tensor) -> Float[Tensor, "E"]:
    """Return what it was given as `result`."""
    assert values.ndim == 2
    return result


def test_parameters_and_what_is_returned_are_checked_together() -> None:
    values = torch.zeros(3, 2)
    assert mean(values, values.mean(-1)).shape == (3,)
    with pytest.raises(TypeCheckError, match="parameters"):
        mean(values[0], torch.zeros(3))
    with pytest.raises(TypeCheckError, match="return value"):
        mean(values, torch.zeros(2))  # as many as agents, not as environments
    with pytest.raises(TypeCheckError, match="return value"):
        mean(values, torch.zeros(3, dtype=torch.int64))
