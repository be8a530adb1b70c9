"""The written-out passes of networks against autograd, in double precision.

Axes: B rows, N agents; I, S features, A outputs.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from marl.nn.layers import agent_mlp, mlp
from marl.nn.mlp import ExplicitMLP, has_explicit_passes

SIZES = st.integers(1, 5)
WIDTHS = st.lists(SIZES, max_size=3).map(tuple)


def randomised(network: nn.Module, source: torch.Generator) -> nn.Module:
    """Return the network in double precision with random parameters and a gradient to write."""
    network = network.to(torch.float64)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(generator=source)
            parameter.grad = torch.full_like(parameter, float("nan"))
    return network


def assert_passes_agree(
    network: nn.Module, source: torch.Generator, *inputs: tuple[Tensor, Tensor | None]
) -> None:
    """Both passes agree with autograd's to 1e-6, also if the memory has been used before."""
    explicit = ExplicitMLP(network)
    parameters = list(network.parameters())
    for x, team in inputs:
        expected = network(x) if team is None else network(x, team)
        found = explicit.forward(x, team)
        torch.testing.assert_close(found, expected.detach(), rtol=1e-6, atol=1e-12)
        slope = torch.randn(expected.shape, generator=source, dtype=torch.float64)
        gradients = torch.autograd.grad((expected * slope).sum(), parameters)
        explicit.set_gradients(slope)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            assert parameter.grad is not None
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-6, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), SIZES, SIZES, st.integers(0, 5), st.integers(0, 4), WIDTHS)
def test_a_team_of_agents(
    seed: int, agents: int, own: int, shared: int, extra: int, widths: tuple[int, ...]
) -> None:
    source = torch.Generator().manual_seed(seed)
    ids_at = [None, 0, own][seed % 3] if not shared else own
    network = agent_mlp(
        agents,
        own + extra + shared,
        widths,
        1 + seed % 3,
        shared=True,
        output_gain=1.0,
        generator=source,
        ids_at=ids_at,
    )
    randomised(network, source)
    inputs = []
    for rows in (3, 7, 4):
        x = torch.randn(rows, agents, own + extra, generator=source, dtype=torch.float64)
        team = torch.randn(rows, shared, generator=source, dtype=torch.float64) if shared else None
        inputs.append((x, team))
    assert_passes_agree(network, source, *inputs)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), SIZES, WIDTHS)
def test_a_network_of_the_state(seed: int, features: int, widths: tuple[int, ...]) -> None:
    source = torch.Generator().manual_seed(seed)
    network = mlp(features, widths, 2, output_gain=1.0, generator=source)
    randomised(network, source)
    inputs = [
        (torch.randn(rows, features, generator=source, dtype=torch.float64), None)
        for rows in (3, 7, 4)
    ]
    assert_passes_agree(network, source, *inputs)


def test_other_networks_are_left_to_autograd() -> None:
    source = torch.Generator()
    unshared = agent_mlp(2, 3, (4,), 1, shared=False, output_gain=1.0, generator=source)
    for network in (unshared, nn.Sequential(nn.Linear(3, 4), nn.ReLU()), nn.Linear(3, 4)):
        assert not has_explicit_passes(network)
        with pytest.raises(ValueError, match="no explicit passes"):
            ExplicitMLP(network)
