"""The implicit reward and its models: its identity, its mixers, its size.

Axes: M episodes, K steps, N agents; O, S, A features.
"""

import contextlib
import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from marl.config import ConfigError, RewardConfig
from marl.data.types import History
from marl.nn.normalisation import TeamNorm
from marl.rewards import CentralReward, FactoredReward, RewardLearner
from marl.rewards.factored import LinearMixer, TwoLayerMixer
from tests.reward_models import (
    CPU,
    GAMMA,
    N,
    S,
    generator,
    make_model,
    make_spec,
    make_steps,
    outputs_of,
    uniform_policy,
)


@settings(max_examples=20)
@given(
    seed=st.integers(0, 2**31 - 1),
    gamma=st.sampled_from([0.0, 0.5, 0.99]),
    continuous=st.booleans(),
    dies=st.booleans(),
)
def test_the_complete_local_rewards_add_up_to_the_global_one(
    seed: int, gamma: float, continuous: bool, dies: bool
) -> None:
    """R = sum_i r_i wherever somebody is alive to be paid."""
    model = make_model(gamma=gamma, continuous=continuous, local_form="complete")
    steps = make_steps(seed, 4, 5, continuous=continuous, dies=dies)
    rewards = model(steps)
    paid = torch.ones(4, 5, dtype=torch.bool) if steps.alive is None else steps.alive.any(dim=-1)
    assert torch.allclose(rewards.team[paid], rewards.local.sum(dim=-1)[paid], atol=1e-5)


@settings(max_examples=20)
@given(
    seed=st.integers(0, 2**31 - 1),
    gamma=st.sampled_from([0.0, 0.5, 0.99]),
    continuous=st.booleans(),
    dies=st.booleans(),
)
def test_the_global_reward_is_the_additive_local_ones_plus_shaping(
    seed: int, gamma: float, continuous: bool, dies: bool
) -> None:
    """R = sum_i r_i + b(s) - gamma (1 - terminated) b(s')."""
    model = make_model(gamma=gamma, continuous=continuous, local_form="additive")
    steps = make_steps(seed, 4, 5, continuous=continuous, dies=dies)
    rewards, q_tot, bias = outputs_of(model, steps)
    assert torch.allclose(rewards.team, rewards.local.sum(dim=-1) + bias, atol=1e-5)
    expected = q_tot.bias
    if gamma > 0.0:
        going_on = (~steps.terminated).float()
        expected = (
            q_tot.bias
            - gamma * going_on * model.target_mixer.hypernetwork(steps.next_state)[..., -1]
        )
    assert torch.allclose(bias, expected, atol=1e-6)


def test_a_terminated_step_is_worth_its_utility_alone() -> None:
    model, steps = make_model(local_form="additive"), make_steps(0, 4, 5, terminated=1.1)
    rewards, q_tot, bias = outputs_of(model, steps)
    q = model.local_q(steps.obs, steps.actions, None)
    assert torch.allclose(rewards.team, q_tot.total)
    assert torch.allclose(rewards.local, q_tot.weights * q)
    assert torch.equal(bias, q_tot.bias)


def test_the_plain_form_has_no_weights() -> None:
    model, steps = make_model(local_form="plain"), make_steps(0, 4, 5, terminated=-1.0)
    q = model.local_q(steps.obs, steps.actions, None)
    next_v = model.target_v(model.norm.obs(steps.next_obs)).squeeze(-1)
    assert torch.allclose(model(steps).local, q - GAMMA * next_v, atol=1e-6)


@settings(max_examples=20)
@given(seed=st.integers(0, 2**31 - 1), kind=st.sampled_from([LinearMixer, TwoLayerMixer]))
def test_mixers_are_monotone_in_every_utility(seed: int, kind: type) -> None:
    source = generator(seed)
    mixer = kind(S, N, 8, source)
    with torch.no_grad():  # far from the start, where all weights are near one
        for parameter in mixer.parameters():
            parameter.mul_(5.0)
    state = torch.randn((20, S), generator=source)
    utilities = torch.randn((20, N), generator=source, requires_grad=True)
    mixed = mixer(state, utilities)
    assert (mixed.weights >= 0).all()
    (slopes,) = torch.autograd.grad(mixed.total.sum(), utilities)
    assert (slopes >= 0).all()


def test_linear_mixers_start_near_a_plain_sum() -> None:
    state = torch.randn((100, S), generator=generator())
    weights = LinearMixer(S, N, 8, generator())(state, torch.zeros(100, N)).weights
    assert (weights - 1.0).abs().max() < 0.3


def test_local_advantages_add_up_to_the_global_one() -> None:
    """Q_tot - V_tot = sum_i w_i (q_i - v_i), with the same mixer for both."""
    model, steps = make_model(), make_steps(3, 4, 5)
    q = model.local_q(steps.obs, steps.actions, None)
    v = model.v(model.norm.obs(steps.obs)).squeeze(-1)
    q_mixed, v_mixed = model.q_mixer(steps.state, q), model.v_mixer(steps.state, v)
    local = (q_mixed.weights * (q - v)).sum(dim=-1)
    assert torch.allclose(q_mixed.total - v_mixed.total, local, atol=1e-5)
    assert torch.allclose(model.local_advantages(steps).sum(dim=-1), local, atol=1e-5)


def test_local_advantages_of_the_absent_are_zero_and_some_models_have_none() -> None:
    steps = make_steps(3, 4, 5, dies=True)
    assert steps.alive is not None
    advantages = make_model().local_advantages(steps)
    assert (advantages[~steps.alive] == 0.0).all()
    assert (advantages[steps.alive] != 0.0).all()
    for changes in ({"gamma": 0.0}, {"shared_mixer": False}):
        with pytest.raises(ValueError, match="no v_i on the scale of q_i"):
            make_model(**changes).local_advantages(steps)


def test_the_value_of_the_reward_takes_the_place_of_a_critic() -> None:
    """The advantages are Q_tot - V_tot and its parts, whatever follows the step."""
    model, steps = make_model(value_as_critic=True), make_steps(3, 4, 5)
    learner = RewardLearner(model, "", model.config, 10, threads=1, device=CPU)
    done = torch.zeros(4, 5, dtype=torch.bool)
    assert learner.rollout_rewards(steps, done, informed=True)[0] is None  # nothing is fitted
    learner.num_fits = 1
    paid, _ = learner.rollout_rewards(steps, done, informed=True)
    assert paid is not None
    assert paid.are_advantages
    expected = model.local_advantages(steps)
    torch.testing.assert_close(paid.local, expected / expected.std(correction=0))
    together = expected.sum(dim=-1)
    torch.testing.assert_close(paid.team, together / together.std(correction=0))
    shown = learner.rewards(steps, done)  # what `marl watch` draws: rewards as they are
    assert not shown.are_advantages


@pytest.mark.parametrize("kind", [FactoredReward, CentralReward])
def test_gamma_zero_has_no_value_and_ignores_the_next_state(kind: type) -> None:
    model, steps = make_model(kind, gamma=0.0), make_steps(0, 4, 5)
    assert not any(name.startswith(("v", "target")) for name, _ in model.named_parameters())
    other = make_steps(9, 4, 5)
    swapped = dataclasses.replace(
        steps,
        next_obs=other.next_obs,
        next_state=other.next_state,
        terminated=other.terminated,
    )
    assert torch.equal(model(steps).team, model(swapped).team)


def test_a_vanishing_gamma_is_the_explicit_factored_reward() -> None:
    """slf is imap at gamma_R = 0."""
    implicit, explicit = make_model(gamma=1e-12), make_model(gamma=0.0)
    explicit.load_state_dict(
        {k: v for k, v in implicit.state_dict().items() if k in explicit.state_dict()}
    )
    steps = make_steps(0, 4, 5)
    assert torch.allclose(implicit(steps).team, explicit(steps).team)
    assert torch.allclose(implicit(steps).local, explicit(steps).local)


@settings(max_examples=10)
@given(seed=st.integers(0, 2**31 - 1), kind=st.sampled_from([FactoredReward, CentralReward]))
def test_dead_agents_contribute_nothing(seed: int, kind: type) -> None:
    """What a dead agent sees and does changes no reward and no value loss; its own is zero."""
    model, steps = make_model(kind), make_steps(seed, 4, 5, dies=True)
    assert steps.alive is not None
    swapped = dataclasses.replace(
        steps,
        actions=torch.where(steps.alive, steps.actions, 1 - steps.actions),
        obs=steps.obs.where(steps.alive.unsqueeze(-1), torch.tensor(9.0)),
    )
    before, q_tot, _ = outputs_of(model, steps)
    after, q_tot_after, _ = outputs_of(model, swapped)
    assert torch.equal(before.team, after.team)
    losses = [
        model.value_loss(each, value, torch.ones(4, 5), uniform_policy)
        for each, value in ((steps, q_tot), (swapped, q_tot_after))
    ]
    assert torch.equal(*losses)
    if before.local is not None:
        assert before.local[~steps.alive].eq(0.0).all()


def test_a_central_reward_has_as_many_parameters_as_a_factored_one() -> None:
    for gamma in (0.0, GAMMA):
        factored, central = (
            sum(p.numel() for p in make_model(kind, gamma).parameters() if p.requires_grad)
            for kind in (FactoredReward, CentralReward)
        )
        assert factored <= central < 1.15 * factored


def widths(model: FactoredReward | CentralReward) -> list[int]:
    """Return the hidden widths of Q."""
    return [
        layer.weight.shape[-2]
        for layer in getattr(model.q, "layers", model.q)
        if hasattr(layer, "weight")
    ][:-1]


@pytest.mark.parametrize(
    ("gamma", "obs_size", "unit"), [(0.0, 20, 13), (0.0, 25, 1), (GAMMA, 20, 20)]
)
def test_a_central_reward_is_as_narrow_as_its_parameters_allow(
    gamma: float, obs_size: int, unit: int
) -> None:
    # One hidden unit of Q has 5 + 3 * 2 weights of inputs, a bias and an output; one of V 5 + 2.
    # With 25 observed numbers the factored reward has as many as 164 units: 13 * 164 + 1.
    spec = dataclasses.replace(make_spec(), obs_sizes=(obs_size,) * 3)
    config = RewardConfig(hidden_sizes=(64,), mixer_hidden=8)
    factored, central = (
        sum(p.numel() for p in model.parameters() if p.requires_grad)
        for model in (
            kind(spec, config, gamma, TeamNorm(spec, enabled=False), generator())
            for kind in (FactoredReward, CentralReward)
        )
    )
    assert 0 <= central - factored < unit


def test_all_layers_of_a_central_reward_are_widened_alike() -> None:
    # A factored reward of 640 and 320 units has 45 * 640 + 641 * 320 + 321 parameters, and its
    # mixer 6 * 8 + 9 * 4: 234,325. The central one, of 11 inputs, comes to that with 4 / 64 more:
    # 12 * 680 + 681 * 340 + 341; with 3 / 64 it has 12 * 670 + 671 * 335 + 336 = 233,161.
    spec = dataclasses.replace(make_spec(), obs_sizes=(39,) * 3)
    config, norm = (
        RewardConfig(hidden_sizes=(640, 320), mixer_hidden=8),
        TeamNorm(spec, enabled=False),
    )
    factored = FactoredReward(spec, config, 0.0, norm, generator())
    assert sum(p.numel() for p in factored.parameters()) == 234_325
    assert widths(CentralReward(spec, config, 0.0, norm, generator())) == [680, 340]


@pytest.mark.parametrize("mixer", [LinearMixer, TwoLayerMixer])
def test_the_mixer_is_the_one_that_is_asked_for(mixer: type) -> None:
    options = {"mixer": "two_layer", "local_form": "plain"} if mixer is TwoLayerMixer else {}
    assert isinstance(make_model(**options).q_mixer, mixer)


def test_a_dead_agent_s_utility_is_zero() -> None:
    model, steps = make_model(), make_steps(0, 4, 5, dies=True)
    assert steps.alive is not None
    with torch.no_grad():
        every = model.local_q(steps.obs, steps.actions, None)
        living = model.local_q(steps.obs, steps.actions, steps.alive)
    assert torch.equal(living, every.where(steps.alive, torch.zeros(())))
    assert (every != 0).all()


def test_output_layers_begin_with_a_gain_of_a_tenth() -> None:
    spec, config = make_spec(), RewardConfig(hidden_sizes=(8,), mixer_hidden=8)
    model = FactoredReward(spec, config, GAMMA, TeamNorm(spec, enabled=False), generator())
    central = CentralReward(spec, config, GAMMA, TeamNorm(spec, enabled=False), generator())
    mixer = model.q_mixer.hypernetwork
    other = TwoLayerMixer(S, N, 8, generator()).hypernetwork
    for last in (
        model.q[-1],
        model.v[-1],
        mixer[-1],
        central.q.layers[-1],
        central.v.layers[-1],
        other[-1],
    ):
        norm = torch.linalg.matrix_norm(last.weight.detach(), 2)
        assert float(norm) == pytest.approx(0.1, rel=1e-4)
        assert (last.bias == 0).all()
    for first in (model.q[0], mixer[0], central.q.layers[0]):  # hidden layers, with sqrt 2
        norm = torch.linalg.matrix_norm(first.weight.detach(), 2)
        assert float(norm) == pytest.approx(2**0.5, rel=1e-4)


def test_the_two_layer_mixer_by_hand() -> None:
    # A hypernetwork of zeros: first weights 1/3, second 1 / sqrt(32), no bias. Utilities of mean 3
    # give 32 * 3 / sqrt(32).
    mixer = TwoLayerMixer(5, 3, 8, generator())
    last = mixer.hypernetwork[-1]
    state, utilities = torch.ones(1, 5), torch.tensor([[1.0, 2.0, 6.0]])
    with torch.no_grad():
        last.weight.zero_()
        value = mixer(state, utilities)
        assert float(value.total) == pytest.approx(3 * 32**0.5)
        assert value.weights.tolist() == [[1.0, 1.0, 1.0]]
        assert value.bias.tolist() == [0.0]
        # Biases of -4 in every unit: elu(3 - 4) = 1/e - 1; and of the whole: .5.
        last.bias[96:128] = -4.0
        last.bias[160] = 0.5
        expected = (math.exp(-1) - 1) * 32**0.5 + 0.5
        assert float(mixer(state, utilities).total) == pytest.approx(expected)
        # softplus(log(e - 1) + x) is 2 at x = log(e^2 - 1) - log(e - 1): double second weights.
        last.bias[128:160] = math.log(math.e**2 - 1) - math.log(math.e - 1)
        doubled = mixer(state, utilities).total
        assert float(doubled) - 0.5 == pytest.approx(2 * (expected - 0.5))


def test_the_longest_episodes_that_a_recurrent_reward_reads() -> None:
    for recurrence, max_steps, allowed in (
        ("gru", 500, True),
        ("gru", 501, False),
        ("none", 501, True),
    ):
        config = RewardConfig(recurrence=recurrence, hidden_sizes=(8, 8))
        spec = dataclasses.replace(make_spec(), max_steps=max_steps)
        arguments = (spec, config, GAMMA, TeamNorm(spec, enabled=False), generator())
        with contextlib.nullcontext() if allowed else pytest.raises(ConfigError, match="at most"):
            FactoredReward(*arguments)


@pytest.mark.parametrize("recurrence", ["none", "gru"])
def test_utilities_of_agents_that_see_and_do_the_same_differ(recurrence: str) -> None:
    model, steps = make_model(recurrence=recurrence), make_steps(0, 4, 5)
    alike = dataclasses.replace(
        steps,
        obs=steps.obs[:, :, :1].expand_as(steps.obs),
        actions=torch.zeros_like(steps.actions),
        history=History(starts=torch.zeros(4, 5, dtype=torch.bool), time_axis=0),
    )
    utilities = model.q_tot(alike).utilities
    assert not torch.isclose(utilities[..., 0], utilities[..., 1]).any()


def test_the_central_reward_by_hand() -> None:
    """R = Q(s, a) - gamma_R (1 - terminated) V(s'), V from the target network."""
    model, steps = make_model(CentralReward), make_steps(0, 4, 5)
    actions = nn.functional.one_hot(steps.actions, 2).flatten(-2).float()
    with torch.no_grad():
        q = model.q(torch.cat((steps.state, actions), dim=-1)).squeeze(-1)
        next_v = model.target_v(steps.next_state).squeeze(-1)
        expected = q - torch.where(steps.terminated, 0.0, GAMMA * next_v)
        torch.testing.assert_close(model(steps).team, expected)
        value = model.q_tot(steps)
    assert (value.weights == 1.0).all()
    assert (value.bias == 0.0).all()
    assert torch.equal(value.utilities.squeeze(-1), value.total)
    assert not torch.allclose(q, model(steps).team, atol=1e-2)


@pytest.mark.parametrize("kind", [FactoredReward, CentralReward])
def test_rewards_of_one_episode_are_those_within_a_batch(kind: type) -> None:
    model, steps = make_model(kind), make_steps(0, 4, 5)
    only = dataclasses.replace(steps, **{k: v[2] for k, v in vars(steps).items() if v is not None})
    torch.testing.assert_close(model(only).team, model(steps).team[2])
