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

from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from marl.nn.kernels import affine, new_product, product, tanh_
from marl.nn.layers import AgentLinear, Tanh

MAX_ROWS = 4096
"""Rows of a pass that nothing is learned from: so many at a time stay in the processor's cache."""


class LayerPasses:
    """The two passes of linear layers with tanh in between.

    They have no parameters of their own: they read those of the layers and write their ``grad``.
    Since the memory is used again, they serve one thread at a time, and `backward` belongs to the
    last `forward`.
    """

    def __init__(self, layers: Iterable[Any]) -> None:
        """Each layer has a ``weight`` and a ``bias``; the first may be an `AgentLinear`."""
        self.layers = list(layers)
        self._outputs: list[Tensor] = []
        """Outputs of every layer: h_l, at last z_L; allocated for the most rows so far."""
        self._gradients: list[Tensor] = []
        """g_l of all layers but the last."""
        self._inputs: tuple[Tensor, Tensor | None] | None = None
        self.passes = 0
        """Passes forward so far."""

    @torch.no_grad()
    def forward(
        self, x: Float[Tensor, "B *N I"], team: Float[Tensor, "B S"] | None = None
    ) -> Float[Tensor, "B *N A"]:
        """Return the network's outputs, in memory that the next call overwrites."""
        return self._forward(x, team)

    def _forward(self, x: Tensor, team: Tensor | None) -> Tensor:
        """Return what `forward` does, where no gradients are recorded in any case."""
        self._inputs = x, team
        self.passes += 1
        rows = x.shape[:-1].numel()
        self._reserve(rows, x)
        h, *outputs = (buffer[:rows] for buffer in self._outputs)
        self._first_layer(x, team, out=h)
        for layer, out in zip(self.layers[1:], outputs, strict=True):
            h = affine(layer.bias, tanh_(h), layer.weight.t(), out=out)
        return h.view(*x.shape[:-1], -1)

    @torch.no_grad()
    def backward(
        self,
        gradient: Float[Tensor, "B *N A"],
        into: Sequence[Tensor],
        into_inputs: Float[Tensor, "R I"] | None = None,
    ) -> None:
        """Write the gradients of the parameters, given that of the outputs of the last `forward`.

        They are set, not added to: `into` has a tensor for the weight and for the bias of each
        layer. Plain linear layers can also write the gradient of what they read.
        """
        weights, biases = into[::2], into[1::2]
        g = gradient.flatten(0, -2)
        rows = len(g)
        below = [buffer[:rows] for buffer in self._outputs[:-1]]
        if not self._gradients:
            self._gradients = [torch.empty_like(buffer) for buffer in self._outputs[:-1]]
        outputs = [buffer[:rows] for buffer in self._gradients]
        for index in range(len(self.layers) - 1, 0, -1):
            h = below[index - 1]
            product(h.t(), g, out=weights[index].t())
            torch.sum(g, 0, out=biases[index])
            g = product(g, self.layers[index].weight, out=outputs[index - 1])
            torch.ops.aten.tanh_backward.grad_input(g, h, grad_input=g)
        self._first_layer_backward(g, weights[0], biases[0])
        if into_inputs is not None:
            product(g, self.layers[0].weight, out=into_inputs)

    def _first_layer(self, x: Tensor, team: Tensor | None, out: Tensor) -> None:
        """Write z_1."""
        layer, rows = self.layers[0], x.flatten(0, -2)
        if not _knows_agents(layer):
            affine(layer.bias, rows, layer.weight.t(), out=out)
            return
        own, ids, of_team = layer.columns(x.shape[-1], x.shape[-2])
        by_agent = product(rows, own.t(), out=out).view(*x.shape[:-1], -1)
        if team is not None:
            by_agent.add_(new_product(team, of_team.t()).unsqueeze(1))
        by_agent.add_(ids.t().contiguous().add_(layer.bias))

    def _first_layer_backward(self, g: Tensor, weight: Tensor, bias: Tensor) -> None:
        """Write the gradients of the first layer, given that of z_1."""
        assert self._inputs is not None
        x, team = self._inputs
        layer, rows = self.layers[0], x.flatten(0, -2)
        if not _knows_agents(layer):
            product(rows.t(), g, out=weight.t())
            torch.sum(g, 0, out=bias)
            return
        by_agent = g.view(*x.shape[:-1], -1)
        of_ids = by_agent.sum(dim=0)
        torch.sum(of_ids, 0, out=bias)
        before, behind = new_product(rows.t(), g).tensor_split((layer.ids_at,))
        columns = [before, of_ids, behind]
        if team is not None:
            columns.append(new_product(team.t(), by_agent.sum(dim=1)))
        weight.copy_(torch.cat(columns).t())

    def _reserve(self, rows: int, like: Tensor) -> None:
        """Make the buffers large enough."""
        if (
            not self._outputs
            or len(self._outputs[0]) < rows
            or self._outputs[0].dtype != like.dtype
        ):
            sizes = [layer.weight.shape[0] for layer in self.layers]
            self._outputs = [like.new_empty(rows, size) for size in sizes]
            self._gradients = []


class ExplicitMLP(LayerPasses):
    """The two passes of a network that `agent_mlp` (with shared weights) or `mlp` has made."""

    def __init__(self, network: nn.Module) -> None:
        if not has_explicit_passes(network):
            raise ValueError(f"no explicit passes for {type(network).__name__}")
        assert isinstance(network, nn.Sequential)
        super().__init__(linear_layers(network))
        self.network = network
        self.parameters = [p for layer in self.layers for p in (layer.weight, layer.bias)]

    def __call__(
        self, x: Float[Tensor, "*L I"], team: Float[Tensor, "*M S"] | None = None
    ) -> Float[Tensor, "*L A"]:
        """Return the outputs as the network would, as one node of autograd's graph if it records.

        Where an input is to get a gradient, the network itself is called.
        """
        if x.requires_grad or (team is not None and team.requires_grad):
            return self.network(x) if team is None else self.network(x, team)
        rows = x.reshape(-1, *x.shape[-2 if _knows_agents(self.layers[0]) else -1 :])
        of_team = None if team is None else team.reshape(-1, team.shape[-1])
        out: Tensor
        if torch.is_grad_enabled():
            out = _Recorded.apply(self, rows, of_team, *self.parameters)  # type: ignore[no-untyped-call]
        else:
            size = max(1, MAX_ROWS // rows.shape[1:-1].numel())
            if len(rows) <= size:
                return self._forward(rows, of_team).clone().view(*x.shape[:-1], -1)
            teams = repeat(None) if of_team is None else of_team.split(size)
            parts = zip(rows.split(size), teams, strict=False)
            outs = [self.forward(part, common).clone() for part, common in parts]
            out = torch.cat(outs)
        return out.view(*x.shape[:-1], -1)

    def set_gradients(self, gradient: Float[Tensor, "B *N A"]) -> None:
        """Set the parameters' ``grad``, given the gradient of what the last `forward` returned."""
        self.backward(gradient, [p.grad for p in self.parameters if p.grad is not None])


class _Recorded(torch.autograd.Function):
    """A network as one node of autograd's graph."""

    @staticmethod
    def forward(
        ctx: Any, network: ExplicitMLP, x: Tensor, team: Tensor | None, *parameters: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, team, *parameters)
        out = network.forward(x, team).clone()
        ctx.network, ctx.passes = network, network.passes
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        network, (x, team, *parameters) = ctx.network, ctx.saved_tensors
        if ctx.passes != network.passes:  # other outputs stand in its memory by now
            network.forward(x, team)
            ctx.passes = network.passes
        into = [torch.empty_like(parameter) for parameter in parameters]
        network.backward(gradients[0], into)
        return (None, None, None, *into)


def explicit(network: nn.Module) -> "nn.Module | ExplicitMLP":
    """Return the explicit passes of a network if it has them, else the network itself."""
    return ExplicitMLP(network) if has_explicit_passes(network) else network


def has_explicit_passes(network: nn.Module) -> bool:
    """Return whether `ExplicitMLP` computes this network; others are left to autograd."""
    if not isinstance(network, nn.Sequential):
        return False
    known = (
        isinstance(layer, Tanh)
        or (isinstance(layer, nn.Linear) and layer.bias is not None)
        or (isinstance(layer, AgentLinear) and layer.shared)
        for layer in network
    )
    return all(known)


def linear_layers(network: nn.Sequential) -> list[nn.Module]:
    """Return the layers of a tanh network that have parameters."""
    return [layer for layer in network if not isinstance(layer, Tanh)]


def _knows_agents(layer: nn.Module) -> bool:
    return isinstance(layer, AgentLinear) and layer.ids_at is not None
