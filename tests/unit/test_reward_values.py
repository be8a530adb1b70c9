"""Values of the reward models: their losses, their target networks, who gets which gradient.

Axes: M episodes, K steps, N agents; O, S, A features.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from marl.data.types import BatchShares, Transitions
from marl.rewards import CentralReward, FactoredReward
from marl.rewards.base import polyak_update
from tests.reward_models import (
    GAMMA,
    make_model,
    make_steps,
    outputs_of,
    uniform_policy,
)


@pytest.mark.parametrize("kind", [FactoredReward, CentralReward])
@pytest.mark.parametrize("value_loss", ["gumbel", "expectile", "soft"])
def test_the_value_loss_reaches_v_only(kind: type, value_loss: Any) -> None:
    model, steps = make_model(kind, value_loss=value_loss), make_steps(0, 4, 5)
    q_tot = model.q_tot(steps)
    model.value_loss(steps, q_tot, torch.ones(4, 5), uniform_policy).backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached
    assert all(name.startswith("v.") for name in reached)


def test_the_value_loss_reaches_a_separate_mixer_of_v() -> None:
    model, steps = make_model(shared_mixer=False), make_steps(0, 4, 5)
    q_tot = model.q_tot(steps)
    model.value_loss(steps, q_tot, torch.ones(4, 5), uniform_policy).backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert {name.split(".")[0] for name in reached} == {"v", "v_mixer"}


@pytest.mark.parametrize("kind", [FactoredReward, CentralReward])
def test_no_gradient_reaches_anything_at_the_next_state(kind: type) -> None:
    """The preference loss reaches q and the mixer at s; v, target networks and s' get nothing."""
    model, steps = make_model(kind), make_steps(0, 4, 5, terminated=-1.0)
    inputs = {
        name: getattr(steps, name).requires_grad_()
        for name in ("obs", "state", "next_obs", "next_state")
    }
    rewards = model(dataclasses.replace(steps, **inputs))
    total = rewards.team.sum() + (0.0 if rewards.local is None else (rewards.local**2).sum())
    total.backward()
    assert inputs["state"].grad is not None
    assert inputs["next_obs"].grad is None
    assert inputs["next_state"].grad is None
    reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert any(name.startswith("q.") for name in reached)
    assert not any(name.startswith(("v.", "target")) for name in reached)


@pytest.mark.parametrize("kind", [FactoredReward, CentralReward])
def test_the_next_state_is_seen_by_target_networks_only(kind: type) -> None:
    model, steps = make_model(kind), make_steps(0, 4, 5, terminated=-1.0)
    before = model(steps)
    with torch.no_grad():
        for parameter in model.v.parameters():
            parameter.add_(1.0)
    assert torch.equal(model(steps).team, before.team)
    with torch.no_grad():
        for parameter in model.target_v.parameters():
            parameter.add_(1.0)
    assert not torch.allclose(model(steps).team, before.team)


def test_the_mixer_at_the_next_state_is_a_target_network_too() -> None:
    model, steps = make_model(), make_steps(0, 4, 5, terminated=-1.0)
    before, q_tot, _ = outputs_of(model, steps)
    with torch.no_grad():
        for parameter in model.q_mixer.parameters():
            parameter.add_(1.0)
    after, q_tot_after, _ = outputs_of(model, steps)
    # What has changed is the part at s alone.
    assert torch.allclose(after.team - q_tot_after.total, before.team - q_tot.total, atol=1e-4)


def test_target_networks_move_by_exactly_the_rate() -> None:
    model = make_model()
    pairs = [
        (
            dict(getattr(model, online).named_parameters()),
            dict(getattr(model, target).named_parameters()),
        )
        for online, target in (("v", "target_v"), ("v_mixer", "target_mixer"))
    ]
    before = [{name: p.clone() for name, p in target.items()} for _, target in pairs]
    model.update_targets(0.25)
    for (online, target), old in zip(pairs, before, strict=True):
        for name, parameter in target.items():
            assert torch.allclose(parameter, old[name] + 0.25 * (online[name] - old[name]))
            assert not torch.equal(parameter, old[name])


def test_the_drift_is_the_distance_after_the_move() -> None:
    online, target = nn.Linear(1, 1), nn.Linear(1, 1)
    with torch.no_grad():
        for layer, weight, bias in ((online, 6.0, 8.0), (target, 0.0, 0.0)):
            layer.weight.fill_(weight)
            layer.bias.fill_(bias)
    # Half way: the gaps 6 and 8 become 3 and 4, the distance 5.
    assert float(polyak_update(online, target, 0.5)) == pytest.approx(5.0)


def test_dead_agents_leave_the_soft_value_of_the_joint_action() -> None:
    model, steps = make_model(CentralReward, value_loss="soft"), make_steps(0, 4, 5, dies=True)
    assert steps.alive is not None

    def policy(scale: float) -> Callable[[Transitions], tuple[Tensor, Tensor]]:
        log_probs = torch.where(steps.alive, -1.0, -scale)  # type: ignore[arg-type]
        return lambda _: (steps.actions, log_probs)

    q_tot = model.q_tot(steps)
    weights = torch.ones(4, 5)
    losses = [model.value_loss(steps, q_tot, weights, policy(scale)) for scale in (1.0, 100.0)]
    assert torch.equal(*losses)
    # Half the squared error of V to Q + beta times the number of the living, whose log-probability
    # is -1 each: here the actions that were taken are the policy's.
    with torch.no_grad():
        v = model.v(steps.state).squeeze(-1)
        soft = q_tot.total + model.config.beta * steps.alive.sum(dim=-1)
        expected = 0.5 * ((soft - v) ** 2).mean()
    torch.testing.assert_close(losses[0], expected)


@pytest.mark.parametrize("dies", [False, True])
@pytest.mark.parametrize(
    ("kind", "shared_mixer"),
    [(FactoredReward, True), (FactoredReward, False), (CentralReward, True)],
)
def test_padding_leaves_the_value_loss(kind: type, shared_mixer: bool, dies: bool) -> None:
    model = make_model(kind, shared_mixer=shared_mixer)
    steps = make_steps(0, 4, 5, dies=dies)
    weights = torch.ones(4, 5)
    weights[:, 3:] = 0.0
    q_tot = model.q_tot(steps)
    short = Transitions(**{k: None if v is None else v[:, :3] for k, v in vars(steps).items()})
    q_tot_short = model.q_tot(short)
    assert torch.allclose(
        model.value_loss(steps, q_tot, weights, uniform_policy),
        model.value_loss(short, q_tot_short, torch.ones(4, 3), uniform_policy),
    )


@pytest.mark.parametrize("gamma", [0.0, GAMMA])
@pytest.mark.parametrize("kind", [FactoredReward, CentralReward])
def test_what_the_value_loss_trains(kind: type, gamma: float) -> None:
    for shared_mixer in (True, False):
        model = make_model(kind, gamma, shared_mixer=shared_mixer)
        names = {id(p): name.partition(".")[0] for name, p in model.named_parameters()}
        own = {"v"} if shared_mixer or kind is CentralReward else {"v", "v_mixer"}
        found = {names[id(p)] for p in model.value_parameters()}
        assert found == (own if gamma > 0.0 else set())


@pytest.mark.parametrize("shared_mixer", [True, False])
def test_the_value_loss_by_hand(shared_mixer: bool) -> None:
    """Of every agent exp(z) - z - 1 with z = w (q - v), and half the squared error of the bias."""
    model = make_model(shared_mixer=shared_mixer, beta=1.0, exponent_clip=50.0)
    steps = make_steps(0, 4, 5)
    with torch.no_grad():
        q = model.q_tot(steps)
        v = model.v(steps.obs).squeeze(-1)
        of_v = model.v_mixer(steps.state, v)
        z = q.weights * q.utilities - of_v.weights * v
        expected = (z.exp() - z - 1.0).mean() + 0.5 * ((of_v.bias - q.bias) ** 2).mean()
        loss = model.value_loss(steps, q, torch.ones(4, 5), uniform_policy)
    torch.testing.assert_close(loss, expected)
    assert float(loss) > 0.01


@pytest.mark.parametrize("kind", [FactoredReward, CentralReward])
def test_the_value_loss_counts_as_its_rows_do_among_those_of_other_processes(kind: type) -> None:
    """A mean over agents' steps by one share, one over the team's steps by the other."""
    model, steps = make_model(kind, shared_mixer=False), make_steps(0, 4, 5)
    q = model.q_tot(steps)

    def loss(agent_steps: float, steps_of_team: float) -> float:
        shares = BatchShares(
            pairs=7.0, returns=7.0, episodes=7.0, steps=steps_of_team, agent_steps=agent_steps
        )
        weights = torch.ones(4, 5)
        return float(model.value_loss(steps, q, weights, uniform_policy, shares))

    alone = float(model.value_loss(steps, q, torch.ones(4, 5), uniform_policy))
    of_agents, of_team = loss(1.0, 0.0), loss(0.0, 1.0)
    assert of_agents + of_team == pytest.approx(alone, rel=1e-5)
    assert of_team > 0.01
    assert (of_agents > 0.01) == (kind is FactoredReward)
    assert loss(2.0, 3.0) == pytest.approx(2.0 * of_agents + 3.0 * of_team, rel=1e-5)


@pytest.mark.parametrize("kind", [FactoredReward, CentralReward])
def test_target_networks_come_nearer_and_the_others_stay(kind: type) -> None:
    model = make_model(kind)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model.update_targets(0.25)
    for name, parameter in model.named_parameters():
        start = before[name]
        if name.startswith("target_"):
            goal = before[name.removeprefix("target_").replace("mixer", "q_mixer")]
            assert torch.allclose(parameter, start + 0.25 * (goal - start), atol=1e-6), name
            assert not torch.equal(parameter, start), name
        else:
            assert torch.equal(parameter, start), name


def test_target_networks_have_no_gradient_of_their_own() -> None:
    for kind in (FactoredReward, CentralReward):
        model = make_model(kind)
        targets = [p for name, p in model.named_parameters() if name.startswith("target")]
        assert targets
        assert not any(p.requires_grad for p in targets)
