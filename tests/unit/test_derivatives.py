"""The written-out derivatives of losses against autograd, in double precision.

Axes: B rows, N agents, A actions.
"""

from types import SimpleNamespace
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from envs import EnvSpec
from marl.config import NetworkConfig
from marl.learners.actors import make_actor
from marl.learners.losses import (
    clipped_policy_loss,
    clipped_policy_slope,
    clipped_value_loss,
    clipped_value_slope,
)
from marl.nn.layers import masked_mean, mean_shares
from marl.nn.normalisation import TeamNorm

SIZES = st.integers(1, 4)
CLIP, ENTROPY = 0.2, 0.03


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-12)


def random_batch(
    seed: int, rows: int, sizes: list[int], *, continuous: bool, dies: bool, masks: bool
) -> tuple[Any, SimpleNamespace]:
    """Return an actor and a minibatch, in double precision; some ratios lie beyond the clip."""
    source = torch.Generator().manual_seed(seed)
    agents, actions = len(sizes), max(sizes)
    spec = EnvSpec(
        name="nowhere",
        num_envs=1,
        obs_sizes=(3,) * agents,
        state_size=2,
        action_kind="continuous" if continuous else "discrete",
        action_sizes=tuple(sizes),
        max_steps=10,
        finite_horizon=True,
    )
    norm, network = TeamNorm(spec, enabled=False), NetworkConfig(hidden_sizes=(4,))
    actor = make_actor(spec, network, norm, source).to(torch.float64)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=source, dtype=torch.float64)

    mask = torch.rand((rows, agents, actions), generator=source) < 0.7 if masks else None
    parameters = 2.0 * noise(rows, agents, actions)
    if continuous:
        with torch.no_grad():
            actor.log_std.copy_(0.5 * noise(agents, actions))
    policy = actor.distribution(parameters, mask)
    drawn = policy.sample(noise(rows, agents, actions))
    old = policy.log_prob(drawn).detach() + 0.3 * noise(rows, agents)
    return actor, SimpleNamespace(
        parameters=parameters.requires_grad_(),
        actions=drawn.detach(),
        mask=mask,
        old=old,
        advantages=noise(rows, agents),
        alive=torch.rand((rows, agents), generator=source) < 0.6 if dies else None,
    )


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 2**31),
    SIZES,
    st.lists(SIZES, min_size=1, max_size=3),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_the_policy_loss(
    seed: int,
    rows: int,
    sizes: list[int],
    continuous: bool,
    dies: bool,
    masks: bool,
    explores: bool,
) -> None:
    """Both kinds of actions, of different numbers, with illegal ones and with deaths."""
    masks = masks and not continuous
    actor, x = random_batch(seed, rows, sizes, continuous=continuous, dies=dies, masks=masks)
    policy = actor.distribution(x.parameters, x.mask)
    surrogate, log_ratio = clipped_policy_loss(
        policy.log_prob(x.actions), x.old, x.advantages, CLIP
    )
    loss = masked_mean(surrogate, x.alive)
    if explores:
        loss = loss - ENTROPY * masked_mean(policy.entropy(), x.alive)
    wanted = [x.parameters, *([actor.log_std] if continuous else [])]
    expected = torch.autograd.grad(loss, wanted)

    with torch.no_grad():
        for parameter in actor.parameters():
            parameter.grad = torch.full_like(parameter, float("nan"))
        known = policy.explicit(x.actions)
        assert_close(known.log_probs - x.old, log_ratio.detach())
        assert_close(known.entropy, policy.entropy())
        shares = mean_shares(known.log_probs, x.alive)
        by_log_prob = clipped_policy_slope(known.log_probs - x.old, x.advantages, CLIP) * shares
        by_entropy = -ENTROPY * shares if explores else None
        assert_close(known.backward(by_log_prob, by_entropy), expected[0])
    if continuous:
        assert_close(actor.log_std.grad, expected[1])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), SIZES, SIZES, st.booleans(), st.sampled_from([0.0, 0.2]))
def test_the_value_loss(seed: int, rows: int, agents: int, dies: bool, clip: float) -> None:
    source = torch.Generator().manual_seed(seed)
    values, change, targets = torch.randn((3, rows, agents), generator=source, dtype=torch.float64)
    old = values + 0.3 * change
    alive = torch.rand((rows, agents), generator=source) < 0.6 if dies else None
    values.requires_grad_()
    loss = masked_mean(clipped_value_loss(values, old, targets, clip), alive)
    (expected,) = torch.autograd.grad(loss, values)
    with torch.no_grad():
        slope = clipped_value_slope(values, old, targets, clip) * mean_shares(values, alive)
    assert_close(slope, expected)
