"""Forward and backward pass of a recurrent network over chunks of steps, written out.

As in `marl.nn.mlp`, without autograd's records and new memory. What the unit reads and the layers
behind it are matrix products over all steps at once; only what depends on the step before is done
step by step. With u_t the sums that the inputs add to the gates, k_t = 0 where an episode starts
with step t and else 1, W_r, W_z, W_n and b_n of the hidden state, and s the logistic function,

    m_t = k_t h_(t-1),    r_t = s(u_r,t + m_t W_r^T),    z_t = s(u_z,t + m_t W_z^T),
    a_t = m_t W_n^T + b_n,    n_t = tanh(u_n,t + r_t a_t),    h_t = n_t + z_t (m_t - n_t).

From g_t = dJ/dh_t, which is what the layers behind say and what step t + 1 adds,

    d_n = g_t (1 - z_t) (1 - n_t^2),    d_r = d_n a_t r_t (1 - r_t),
    d_z = g_t (m_t - n_t) z_t (1 - z_t),    d_a = d_n r_t,
    g_(t-1) += k_t (g_t z_t + d_r W_r + d_z W_z + d_a W_n),

and (d_r, d_z, d_n) is the gradient of u_t, and (d_r, d_z, d_a) that of m_t W^T + b.

Axes: L steps of a chunk, B rows, N agents, R = B * N; I, S features, A outputs, H hidden units,
G = 3 H what is summed for the gates.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from marl.nn.gru import AgentGRU, RecurrentBody
from marl.nn.kernels import add_product, affine, product, tanh_
from marl.nn.mlp import ExplicitMLP, LayerPasses, has_explicit_passes, linear_layers

_sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input
_tanh_backward = torch.ops.aten.tanh_backward.grad_input


class ExplicitGRU:
    """The two passes of a `RecurrentBody` with shared weights and a layer before its unit.

    Its memory is used again: see `LayerPasses`.
    """

    def __init__(self, body: RecurrentBody) -> None:
        if not is_explicit(body):
            raise ValueError("no explicit passes for a recurrent network of this form")
        self.body, self.gru = body, body.gru
        self._before = LayerPasses((body.before[0], _InputGates(body.gru)))
        self._behind = LayerPasses(linear_layers(body.after))
        self._buffers: list[Tensor] = []
        """m, h, a, and the gradients of h and of u; allocated for the most rows so far."""
        self._gates: Float[Tensor, "L R G"]
        """r, z, n of the last `forward`."""
        self._keep: Float[Tensor, "L R 1"]

    @torch.no_grad()
    def forward(
        self,
        hidden: Float[Tensor, "B N H"],
        starts: Bool[Tensor, "L B"],
        x: Float[Tensor, "L B *N I"],
        team: Float[Tensor, "L B S"] | None = None,
    ) -> Float[Tensor, "L B *N A"]:
        """Return the outputs of successive steps, in memory that the next call overwrites.

        `hidden` is the state before the first step. It gets no gradient.
        """
        steps, size = len(starts), hidden.shape[-1]
        common = None if team is None else team.flatten(0, 1)
        u = self._before.forward(x.flatten(0, 1), common).view(steps, -1, 3 * size)
        self._gates, self._keep = u, _kept(starts, hidden)
        before, after, from_hidden = self._views(steps, u.shape[1], size)[:3]
        weight, bias = self.gru.weight_hidden[0], self.gru.bias_hidden[0]
        of_gates, of_new = weight[: 2 * size].t(), weight[2 * size :].t()
        h = hidden.reshape(-1, size)
        for t in range(steps):
            m = torch.mul(h, self._keep[t], out=before[t])
            gates, n = u[t].split((2 * size, size), dim=-1)
            add_product(gates, m, of_gates).sigmoid_()
            r, z = gates.split(size, dim=-1)
            a = affine(bias[2 * size :], m, of_new, out=from_hidden[t])
            tanh_(n.addcmul_(r, a))
            h = torch.lerp(n, m, z, out=after[t])
        return self._behind.forward(after.flatten(0, 1)).view(*x.shape[:-1], -1)

    @torch.no_grad()
    def set_gradients(self, gradient: Float[Tensor, "L B *N A"]) -> None:
        """Set the parameters' ``grad``, given the gradient of what the last `forward` returned."""
        u, gru = self._gates, self.gru
        steps, rows, size = len(u), u.shape[1], u.shape[2] // 3
        before, _, from_hidden, by_h, by_u = self._views(steps, rows, size)
        outer = gradient.reshape(steps * rows, -1)
        self._behind.backward(outer, _gradients(self._behind.layers), by_h.flatten(0, 1))
        of_gates, of_new = gru.weight_hidden[0].split((2 * size, size))
        for t in reversed(range(steps)):
            g, d, m, a = by_h[t], by_u[t], before[t], from_hidden[t]
            gates, n = u[t].split((2 * size, size), dim=-1)
            r, z = gates.split(size, dim=-1)
            d_r, d_z, d_n = d.split(size, dim=-1)
            d_gates = d[:, : 2 * size]
            by_m = g * z
            torch.sub(g, by_m, out=d_n)
            _tanh_backward(d_n, n, grad_input=d_n)
            torch.mul(d_n, a, out=d_r)
            torch.sub(m, n, out=d_z).mul_(g)
            _sigmoid_backward(d_gates, gates, grad_input=d_gates)
            d_a = torch.mul(d_n, r, out=a)
            if t > 0:
                add_product(add_product(by_m, d_gates, of_gates), d_a, of_new)
                by_h[t - 1].addcmul_(by_m, self._keep[t])
        self._set_gradients_of_unit(before.flatten(0, 1), by_u.flatten(0, 1), from_hidden)
        gates_layer = [x.grad[0] for x in (gru.weight_input, gru.bias_input) if x.grad is not None]
        self._before.backward(
            by_u.flatten(0, 1), [*_gradients(self._before.layers[:1]), *gates_layer]
        )
        assert gru.bias_input.grad is not None
        assert gru.bias_hidden.grad is not None
        gru.bias_hidden.grad[0, : 2 * size] = gru.bias_input.grad[0, : 2 * size]

    def _set_gradients_of_unit(
        self, m: Float[Tensor, "LR H"], by_u: Float[Tensor, "LR G"], by_a: Float[Tensor, "L R H"]
    ) -> None:
        """Set the gradients of what the unit makes of its hidden state, but for two biases."""
        weight, bias, size = self.gru.weight_hidden.grad, self.gru.bias_hidden.grad, m.shape[-1]
        assert weight is not None
        assert bias is not None
        of_gates, of_new = weight[0].split((2 * size, size))
        product(m.t(), by_u[:, : 2 * size], out=of_gates.t())
        product(m.t(), by_a.flatten(0, 1), out=of_new.t())
        torch.sum(by_a.flatten(0, 1), 0, out=bias[0, 2 * size :])

    def _views(self, steps: int, rows: int, size: int) -> list[Tensor]:
        """Return the buffers for so many steps and rows, made larger where they must be."""
        like, count = self._gates, steps * rows
        fits = self._buffers and len(self._buffers[0]) >= count
        if not fits or self._buffers[0].dtype != like.dtype:
            widths = (size, size, size, size, 3 * size)
            self._buffers = [like.new_empty(count, width) for width in widths]
        return [buffer[:count].view(steps, rows, -1) for buffer in self._buffers]


class _InputGates:
    """What a unit's gates make of its inputs, as a linear layer."""

    def __init__(self, gru: AgentGRU) -> None:
        self.gru = gru

    @property
    def weight(self) -> Float[Tensor, "G I"]:
        return self.gru.weight_input[0]

    @property
    def bias(self) -> Float[Tensor, "G"]:
        """The biases of the inputs and, of the two gates that just add them, the hidden state's."""
        bias = self.gru.bias_input[0] + self.gru.bias_hidden[0]
        of_new = slice(2 * len(bias) // 3, None)
        bias[of_new] = self.gru.bias_input[0, of_new]
        return bias


def _kept(starts: Bool[Tensor, "L B"], like: Float[Tensor, "B N H"]) -> Float[Tensor, "L R 1"]:
    """Return 0 in the rows where an episode starts and else 1."""
    keep = (~starts).to(like.dtype).unsqueeze(-1).expand(-1, -1, like.shape[1])
    return keep.reshape(len(starts), -1, 1)


def _gradients(layers: list[nn.Module]) -> list[Tensor]:
    """Return the ``grad`` of the weight and of the bias of each layer."""
    parameters = [p for layer in layers for p in (layer.weight, layer.bias)]
    return [p.grad for p in parameters if isinstance(p.grad, Tensor)]


def is_explicit(body: nn.Module) -> bool:
    """Return whether `ExplicitGRU` computes this network; others are left to autograd."""
    return isinstance(body, RecurrentBody) and body.gru.shared and len(body.before) > 0


def explicit_passes(body: nn.Module) -> ExplicitMLP | ExplicitGRU | None:
    """Return the explicit passes of an actor's or a critic's network; None: it has none."""
    if isinstance(body, RecurrentBody):
        return ExplicitGRU(body) if is_explicit(body) else None
    return ExplicitMLP(body) if has_explicit_passes(body) else None
