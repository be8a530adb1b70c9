"""One vector of parameters: the steps of Adam as layer by layer, copies, loading."""

import copy

import torch
from torch import Tensor, nn

from marl.nn.optimizer import Optimizer


def make_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def loss_of(network: nn.Module, seed: int) -> Tensor:
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(seed))
    loss: Tensor = (network(x) ** 2).sum()
    return loss


def test_steps_are_those_of_adam_on_the_layers_of_a_network() -> None:
    mine, theirs = make_network(), make_network()
    optimizer = Optimizer(mine.parameters(), 1e-2, 0.5, eps=1e-5)
    adam = torch.optim.Adam(theirs.parameters(), lr=1e-2, eps=1e-5)
    for seed in range(5):
        adam.zero_grad()
        loss_of(theirs, seed).backward()
        if seed == 2:
            mine.zero_grad()  # sets gradients to None
        assert nn.utils.clip_grad_norm_(theirs.parameters(), 0.5) > 0.5  # it is clipped
        adam.step()
        optimizer.minimize(loss_of(mine, seed))
        for left, right in zip(mine.parameters(), theirs.parameters(), strict=True):
            assert torch.allclose(left, right, rtol=1e-5, atol=1e-7)


def test_parameters_of_two_kinds_are_clipped_together() -> None:
    network = make_network()
    network[2].to(torch.float64)
    parameters = list(network.parameters())
    optimizer = Optimizer(parameters, 1e-2, 1e-3)
    optimizer.backward(sum((p.to(torch.float64) ** 2).sum() for p in parameters))  # type: ignore
    optimizer.step()
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = torch.stack([gradient.to(torch.float64).norm() for gradient in gradients]).norm()
    assert torch.isclose(norm, torch.tensor(1e-3, dtype=torch.float64), rtol=1e-3)


def test_a_copy_goes_on_alike_and_apart() -> None:
    network = make_network()
    optimizer = Optimizer(network.parameters(), 1e-2, 0.5)
    optimizer.minimize(loss_of(network, 0))
    before = [p.clone() for p in network.parameters()]
    other, others = copy.deepcopy((network, optimizer))
    others.minimize(loss_of(other, 1))
    for left, right in zip(network.parameters(), before, strict=True):
        assert torch.equal(left, right)
    optimizer.minimize(loss_of(network, 1))
    for left, right in zip(network.parameters(), other.parameters(), strict=True):
        assert torch.equal(left, right)


def test_loading_a_network_and_its_optimizer_goes_on_bit_for_bit() -> None:
    networks = [make_network() for _ in range(2)]
    optimizers = [Optimizer(network.parameters(), 1e-2, 0.5) for network in networks]
    optimizers[0].minimize(loss_of(networks[0], 0))
    networks[1].load_state_dict(networks[0].state_dict())
    optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
    for network, optimizer in zip(networks, optimizers, strict=True):
        optimizer.minimize(loss_of(network, 1))
    for left, right in zip(networks[0].parameters(), networks[1].parameters(), strict=True):
        assert torch.equal(left, right)
