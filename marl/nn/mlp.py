"""Forward and backward pass of a tanh network, written out and without new memory.

Autograd records every operation, allocates every result anew and gathers the gradient tensor by
tensor; in networks of 64 units that takes longer than the matrix products. With h_0 = x, layer
l = 1 .. L of a network computes

    z_l = h_(l-1) W_l^T + b_l,    h_l = tanh(z_l),    the last one z_L alone,

and from g_L = dJ/dz_L of any loss J follows, row by row of x,

    dJ/dW_l = g_l^T h_(l-1),    dJ/db_l = sum of g_l over rows,
    g_(l-1) = (g_l W_l) (1 - h_(l-1)^2).

The first layer of a network of agents (`AgentLinear`) also reads who the agent is and what the team
has in common. For agent i of row b, with c_i the column of W_1 that belongs to the agent's id,

    z_1[b, i] = x[b, i] W_own^T + team[b] W_team^T + c_i + b_1,
    dJ/dc_i = sum over b of g_1[b, i],    dJ/dW_team = sum over b, i of g_1[b, i] team[b].

Of the two orders in which dJ/dW can be multiplied, h^T g is up to five times as fast as g^T h where
h is narrow.

Axes: B rows, N agents (absent where the network is the team's), R = B * N; I, S features, A
outputs, H units of a layer.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from marl.nn.layers import AgentLinear, Tanh, tanh_


class ExplicitMLP:
    """The two passes of a network that `agent_mlp` (with shared weights) or `mlp` has made.

    It has no parameters of its own: it reads those of the network and writes their ``grad``.
    """

    def __init__(self, network: nn.Module) -> None:
        if not has_explicit_passes(network):
            raise ValueError(f"no explicit passes for {type(network).__name__}")
        assert isinstance(network, nn.Sequential)
        self.layers: list[Any] = [layer for layer in network if not isinstance(layer, Tanh)]
        self._outputs: list[Tensor] = []
        """What every layer has put out: h_l, at last z_L. Room for the most rows so far."""
        self._gradients: list[Tensor] = []
        """g_l of all layers but the last."""
        self._inputs: tuple[Tensor, Tensor | None] | None = None

    @torch.no_grad()
    def forward(
        self, x: Float[Tensor, "B *N I"], team: Float[Tensor, "B S"] | None = None
    ) -> Float[Tensor, "B *N A"]:
        """Return the network's outputs, in memory that the next call overwrites."""
        self._inputs = x, team
        rows = x.shape[:-1].numel()
        self._reserve(rows, x)
        h, *outputs = (buffer[:rows] for buffer in self._outputs)
        self._first_layer(x, team, out=h)
        for layer, out in zip(self.layers[1:], outputs, strict=True):
            h = torch.addmm(layer.bias, tanh_(h), layer.weight.t(), out=out)
        return h.view(*x.shape[:-1], -1)

    @torch.no_grad()
    def backward(self, gradient: Float[Tensor, "B *N A"]) -> None:
        """Set the ``grad`` of every parameter, given that of the outputs of the last `forward`."""
        g = gradient.flatten(0, -2)
        rows = len(g)
        below = [buffer[:rows] for buffer in self._outputs[:-1]]
        room = [buffer[:rows] for buffer in self._gradients]
        for layer, h, out in zip(self.layers[:0:-1], below[::-1], room[::-1], strict=True):
            torch.mm(h.t(), g, out=layer.weight.grad.t())
            torch.sum(g, 0, out=layer.bias.grad)
            g = torch.mm(g, layer.weight, out=out)
            torch.ops.aten.tanh_backward.grad_input(g, h, grad_input=g)
        self._first_layer_backward(g)

    def _first_layer(self, x: Tensor, team: Tensor | None, out: Tensor) -> None:
        """Write z_1."""
        layer, rows = self.layers[0], x.flatten(0, -2)
        if not _knows_agents(layer):
            torch.addmm(layer.bias, rows, layer.weight.t(), out=out)
            return
        own, ids, of_team = layer.columns(x.shape[-1], x.shape[-2])
        by_agent, biases = out.view(*x.shape[:-1], -1), ids.t().contiguous().add_(layer.bias)
        if team is None:
            by_agent.copy_(biases)
        else:
            torch.add((team @ of_team.t()).unsqueeze(1), biases, out=by_agent)
        out.addmm_(rows, own.t())

    def _first_layer_backward(self, g: Tensor) -> None:
        assert self._inputs is not None
        x, team = self._inputs
        layer, rows = self.layers[0], x.flatten(0, -2)
        if not _knows_agents(layer):
            torch.mm(rows.t(), g, out=layer.weight.grad.t())
            torch.sum(g, 0, out=layer.bias.grad)
            return
        by_agent = g.view(*x.shape[:-1], -1)
        of_ids = by_agent.sum(dim=0)
        torch.sum(of_ids, 0, out=layer.bias.grad)
        before, behind = (rows.t() @ g).tensor_split((layer.ids_at,))
        columns = [before, of_ids, behind]
        if team is not None:
            columns.append(team.t() @ by_agent.sum(dim=1))
        layer.weight.grad.copy_(torch.cat(columns).t())

    def _reserve(self, rows: int, like: Tensor) -> None:
        """Make the buffers large enough."""
        if not self._outputs or len(self._outputs[0]) < rows:
            sizes = [layer.weight.shape[0] for layer in self.layers]
            self._outputs = [like.new_empty(rows, size) for size in sizes]
            self._gradients = [like.new_empty(rows, size) for size in sizes[:-1]]


def has_explicit_passes(network: nn.Module) -> bool:
    """Return whether `ExplicitMLP` computes this network; others are left to autograd."""
    if not isinstance(network, nn.Sequential):
        return False
    shared = (
        isinstance(layer, nn.Linear | Tanh) or (isinstance(layer, AgentLinear) and layer.shared)
        for layer in network
    )
    return all(shared)


def _knows_agents(layer: nn.Module) -> bool:
    return isinstance(layer, AgentLinear) and layer.ids_at is not None
