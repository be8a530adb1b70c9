"""Layers: the hidden units' activation, and agents told apart."""

import pytest
import torch

from marl.nn import layers


def test_tanh_and_its_slope() -> None:
    x = torch.linspace(-20.0, 20.0, 1001, requires_grad=True)
    y = layers.Tanh()(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    exact = x.detach().double().tanh()
    assert torch.allclose(y.double(), exact, atol=5e-7)
    assert torch.allclose(slope.double(), 1.0 - exact**2, atol=1e-6)
    # The same numbers without a gradient, in a copy.
    plain = x.detach()
    assert torch.equal(layers.Tanh()(plain), y)
    assert torch.equal(plain, x)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("ids_at", [0, 2, 3])
def test_a_layer_that_knows_its_agent_reads_as_if_ids_and_team_were_written_out(
    shared: bool, ids_at: int
) -> None:
    agents, own, team, outputs = 4, 3, 5, 6
    source = torch.Generator().manual_seed(0)
    layer = layers.AgentLinear(
        agents, own + team, outputs, shared=shared, gain=1.0, generator=source, ids_at=ids_at
    )
    with torch.no_grad():
        layer.bias.normal_(generator=source)
    x = torch.randn(2, 7, agents, own, generator=source)
    state = torch.randn(2, 7, team, generator=source)
    for agent in range(agents):
        weight, bias = (p if shared else p[agent] for p in (layer.weight, layer.bias))
        one_hot = torch.eye(agents)[agent].expand(2, 7, agents)
        mine = x[:, :, agent]
        written = torch.cat((mine[..., :ids_at], one_hot, mine[..., ids_at:], state), dim=-1)
        expected = torch.nn.functional.linear(written, weight, bias)
        assert torch.allclose(layer(x, state)[:, :, agent], expected, atol=1e-5)
