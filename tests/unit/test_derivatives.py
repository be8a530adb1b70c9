"""The written-out derivatives of losses against autograd, in double precision.

Axes: B rows, N agents, A actions.
"""

import dataclasses
from types import SimpleNamespace
from typing import Any, Literal, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from envs import EnvSpec
from envs.parts import part_layout
from marl.config import NetworkConfig
from marl.data.types import EpisodeBatch, Transitions
from marl.learners.actors import make_actor
from marl.learners.losses import (
    clipped_policy_loss,
    clipped_policy_slope,
    clipped_value_loss,
    clipped_value_slope,
    policy_metrics,
)
from marl.nn.layers import agent_mlp, masked_mean, mean_shares, mlp
from marl.nn.mlp import ExplicitMLP
from marl.nn.normalisation import TeamNorm
from marl.rewards import RewardLearner
from marl.rewards.factored import LinearMixer, TwoLayerMixer
from tests.reward_models import generator, make_model, make_steps
from tests.unit.test_reward_learner import OneBatch

SIZES = st.integers(1, 4)
CLIP, ENTROPY = 0.2, 0.03


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-12)


Kind = Literal["discrete", "continuous", "composite"]
PARTS = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4), min_size=1, max_size=3)
"""Of every agent the parts of its action, as in `EnvSpec.action_parts`."""


def random_batch(
    seed: int, rows: int, parts: list[list[int]], kind: Kind, *, dies: bool, masks: bool
) -> tuple[Any, SimpleNamespace]:
    """Return an actor and a minibatch, in double precision; some ratios lie beyond the clip.

    Agents of plain kinds have as many choices or numbers as `parts` have columns.
    """
    source = torch.Generator().manual_seed(seed)
    sizes = [sum(max(part, 1) for part in each) for each in parts]
    agents, actions = len(sizes), max(sizes)
    spec = EnvSpec(
        name="nowhere",
        num_envs=1,
        obs_sizes=(3,) * agents,
        state_size=2,
        action_kind=kind,
        action_sizes=tuple(sizes),
        action_parts=tuple(map(tuple, parts)) if kind == "composite" else (),
        max_steps=10,
        finite_horizon=True,
    )
    norm, network = TeamNorm(spec, enabled=False), NetworkConfig(hidden_sizes=(4,))
    actor = make_actor(spec, network, norm, source).to(torch.float64)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=source, dtype=torch.float64)

    mask = torch.rand((rows, agents, actions), generator=source) < 0.7 if masks else None
    if mask is not None and kind == "composite":  # as environments promise it
        layout = part_layout(spec.action_parts)
        first = layout.one_hot(np.ones((rows, agents, actions))) > 0
        mask |= torch.from_numpy(first | layout.is_number)
    parameters = 2.0 * noise(rows, agents, actions)
    if kind != "discrete":
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


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, 2**31),
    SIZES,
    PARTS,
    st.sampled_from(get_args(Kind)),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_the_policy_loss(
    seed: int,
    rows: int,
    parts: list[list[int]],
    kind: Kind,
    dies: bool,
    masks: bool,
    explores: bool,
) -> None:
    """All kinds of actions, of different numbers, with illegal ones and with deaths."""
    masks = masks and kind != "continuous"
    actor, x = random_batch(seed, rows, parts, kind, dies=dies, masks=masks)
    policy = actor.distribution(x.parameters, x.mask)
    surrogate, log_ratio = clipped_policy_loss(
        policy.log_prob(x.actions), x.old, x.advantages, CLIP
    )
    loss = masked_mean(surrogate, x.alive)
    if explores:
        loss = loss - ENTROPY * masked_mean(policy.entropy(), x.alive)
    has_deviation = kind == "continuous" or (kind == "composite" and actor.layout.has_numbers)
    wanted = [x.parameters, *([actor.log_std] if has_deviation else [])]
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
    if has_deviation:
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


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**31),
    st.integers(1, 4),
    st.sampled_from([0.0, 0.9]),
    st.booleans(),
    st.booleans(),
    st.sampled_from(
        [
            {},
            {"local_form": "additive", "length_normalised": True},
            {"shared_mixer": False, "value_loss": "expectile"},
            {"value_loss": "soft"},
            {"mixer": "two_layer", "local_form": "plain"},
        ]
    ),
)
def test_the_losses_of_the_reward(
    seed: int,
    steps: int,
    gamma: float,
    continuous: bool,
    dies: bool,
    options: dict[str, Any],
) -> None:
    """Gradients through the networks' explicit passes are those through the networks."""
    episodes = 3
    transitions = make_steps(seed, episodes, steps, continuous=continuous, dies=dies)
    batch = EpisodeBatch(
        transitions=in_double_precision(transitions),
        step_weights=torch.rand(
            (episodes, steps), generator=generator(seed), dtype=torch.float64
        ).clamp(min=0.1),
        lengths=torch.tensor([steps, 9, 7]),
        returns=torch.full((episodes,), float("nan"), dtype=torch.float64),
        first=torch.tensor([0, 0, 1]),
        second=torch.tensor([1, 2, 2]),
        labels=torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64),
    )

    def policy(steps: Transitions) -> tuple[Tensor, Tensor]:
        shape = steps.actions.shape[:3]
        return steps.actions, torch.full(shape, -0.7, dtype=torch.float64)

    gradients = []
    for passes in (True, False):
        model = make_model(gamma=gamma, continuous=continuous, **options).to(torch.float64)
        if not passes:
            for reader in model.readers.values():
                assert isinstance(reader.body, ExplicitMLP)
                reader.body = reader.body.network
            for part in model.modules():
                if isinstance(part, LinearMixer | TwoLayerMixer):
                    part.passes = part.hypernetwork
        config = dataclasses.replace(
            model.config, gradient_steps=1, max_grad_norm=1e6, split_regularisation=0.1
        )
        learner = RewardLearner(model, "", config, 10, threads=1, device=torch.device("cpu"))
        learner.fit(OneBatch(batch), policy)
        gradients.append([p.grad for p in learner.parameters])
    for found, expected in zip(*gradients, strict=True):
        assert expected is not None
        assert_close(found, expected)


def in_double_precision(steps: Transitions) -> Transitions:
    fields = {name: x for name, x in vars(steps).items() if isinstance(x, Tensor)}
    return Transitions(
        **{name: x.double() if x.is_floating_point() else x for name, x in fields.items()}
    )


def test_graphs_of_explicit_passes_may_be_differentiated_in_any_order() -> None:
    network = mlp(3, (4,), 1, output_gain=1.0, generator=generator()).to(torch.float64)
    passes, parameters = ExplicitMLP(network), list(network.parameters())
    inputs = torch.randn(2, 5, 3, dtype=torch.float64)
    gradients = []
    for forward in (passes, network):
        first, second = (forward(x).square().sum() for x in inputs)
        with torch.no_grad():
            forward(inputs)
        found = [torch.autograd.grad(loss, parameters) for loss in (second, first)]
        gradients.append([*found[0], *found[1]])
    for found, expected in zip(*gradients, strict=True):
        assert_close(found, expected)


def test_many_rows_are_read_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("marl.nn.mlp.MAX_ROWS", 4)
    network = agent_mlp(
        3, 7, (4,), 2, shared=True, output_gain=1.0, generator=generator(), ids_at=5
    )
    x, team = torch.randn(2, 5, 3, 5), torch.randn(2, 5, 2)
    with torch.no_grad():
        assert torch.allclose(ExplicitMLP(network)(x, team), network(x, team), atol=1e-6)


def test_at_just_the_clip_the_value_still_moves() -> None:
    # Old 0, clip .25, target 1: at .25 both errors are -.75, beyond it the clipped one is larger.
    values = torch.tensor([0.25, 0.5, -0.25, -0.5])
    slope = clipped_value_slope(values, torch.zeros(4), torch.ones(4), 0.25)
    assert slope.tolist() == [-0.75, 0.0, -1.25, -1.5]


def test_policy_metrics_by_hand() -> None:
    # Ratios 1.5, .5, 1 and 1.1: two of four change by more than .2. With log-ratios .405465,
    # -.693147, 0 and .095310, ratio - 1 - log-ratio is .094535, .193147, 0 and .004690.
    log_ratio = torch.tensor([[1.5, 0.5], [1.0, 1.1]]).log()
    metrics = policy_metrics(log_ratio, None, 0.2)
    assert float(metrics["policy/clip_fraction"]) == 0.5
    assert float(metrics["policy/kl"]) == pytest.approx(0.292372 / 4, abs=1e-6)
    alive = torch.tensor([[False, True], [True, True]])
    metrics = policy_metrics(log_ratio, alive, 0.2)
    assert float(metrics["policy/clip_fraction"]) == pytest.approx(1 / 3)
    assert float(metrics["policy/kl"]) == pytest.approx(0.197837 / 3, abs=1e-6)
