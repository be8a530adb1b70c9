"""The hidden units' activation."""

import pytest
import torch

from marl.nn import layers


@pytest.mark.parametrize("slow", [True, False])
def test_tanh_and_its_slope_on_either_processor(
    slow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "_MKL_IS_SLOW", slow)
    x = torch.linspace(-20.0, 20.0, 1001, requires_grad=True)
    y = layers.Tanh()(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    exact = x.detach().double().tanh()
    assert torch.allclose(y.double(), exact, atol=5e-7)
    assert torch.allclose(slope.double(), 1.0 - exact**2, atol=1e-6)
