"""Policies: masks, ragged action sizes, clipping, and whose observation is whose.

Axes: N agents, A actions.
"""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from marl.learners.actors import CategoricalActor, GaussianActor, make_actor
from marl.learners.distributions import Gaussian
from marl.nn.normalisation import TeamNorm
from tests.learners import LENGTHS, NETWORK, collect, generator, make_mappo, random_rewards
from tests.scripted import ScriptedEnv


def new_actor(env: ScriptedEnv) -> CategoricalActor | GaussianActor:
    return make_actor(env.spec, NETWORK, TeamNorm(env.spec, enabled=False), generator())


def masked_actor() -> tuple[CategoricalActor, Tensor, Tensor]:
    """Return an actor, strong wishes for action 0, and a mask that forbids it to agent 0."""
    actor = new_actor(ScriptedEnv(LENGTHS))
    assert isinstance(actor, CategoricalActor)
    logits = torch.tensor([5.0, 0.0, 0.0]).expand(1000, 2, 3).clone().requires_grad_()
    mask = torch.ones(1000, 2, 3, dtype=torch.bool)
    mask[:, 0, 0] = False
    return actor, logits, mask


def test_an_illegal_action_is_never_drawn() -> None:
    actor, logits, mask = masked_actor()
    policy = actor.distribution(logits, mask)
    drawn = policy.sample(actor.noise((1000,), generator()))
    assert (drawn[:, 0] > 0).all()
    assert (drawn[:, 1] == 0).any()
    assert (policy.mode()[:, 0] > 0).all()


def test_an_illegal_action_has_exactly_zero_probability_and_gradient() -> None:
    actor, logits, mask = masked_actor()
    actions = torch.zeros(1000, 2, dtype=torch.int64)
    policy = actor.distribution(logits, mask)
    assert (policy.log_prob(actions)[:, 0].exp() == 0.0).all()
    legal = torch.ones(1000, 2, dtype=torch.int64)
    # Two equally likely actions are left to agent 0; agent 1 has 1 / (2 + e^5) for action 1.
    probs = policy.log_prob(legal).exp()
    assert probs[0].tolist() == pytest.approx([0.5, 1 / (2 + np.exp(5))])
    probs.sum().backward()
    assert logits.grad is not None
    assert (logits.grad[:, 0, 0] == 0.0).all()


def test_an_illegal_action_adds_nothing_to_the_entropy() -> None:
    actor, logits, mask = masked_actor()
    entropy = actor.distribution(logits, mask).entropy()
    assert entropy[:, 0].tolist() == pytest.approx([np.log(2.0)] * 1000, rel=1e-6)
    entropy.sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert (logits.grad[:, 0, 0] == 0.0).all()


def test_a_single_legal_action_has_no_entropy_and_no_gradient() -> None:
    actor, logits, mask = masked_actor()
    mask[:] = False
    mask[..., 2] = True
    chosen, policy = torch.full((1000, 2), 2), actor.distribution(logits, mask)
    assert (policy.sample(actor.noise((1000,), generator())) == 2).all()
    loss = policy.log_prob(chosen).sum() + policy.entropy().sum()
    assert loss.item() == 0.0
    loss.backward()
    assert logits.grad is not None
    assert not logits.grad.any()


def test_the_policy_ratio_starts_at_one_under_a_mask() -> None:
    env = ScriptedEnv(LENGTHS, masks_actions=True)
    mappo = make_mappo(env.spec)
    rollout = collect(mappo, env)
    steps = rollout.transitions
    assert (steps.actions[..., 0] > 0).all()
    log_probs = mappo.actor.log_prob(steps.obs, steps.actions, steps.action_mask)
    assert torch.allclose(log_probs, rollout.log_probs, atol=1e-6)
    metrics = mappo.update(rollout, random_rewards(rollout), 1.0)
    assert metrics["policy/kl"] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("masks_actions", [False, True])
def test_agents_with_fewer_choices_never_take_the_missing_ones(masks_actions: bool) -> None:
    env = ScriptedEnv(LENGTHS, action_sizes=(2, 4), masks_actions=masks_actions)
    mappo = make_mappo(env.spec)
    rollout = collect(mappo, env, steps=100)
    taken = rollout.transitions.actions
    assert taken[..., 0].max() == 1
    assert taken[..., 1].max() == 3
    entropy = mappo.actor.distribution(torch.zeros(2, 4)).entropy()
    assert entropy.tolist() == pytest.approx([np.log(2), np.log(4)], rel=1e-6)


def test_a_mask_that_allows_missing_actions_does_not_bring_them_back() -> None:
    # Of 2 and 4 actions, the mask takes one of the second agent's.
    actor = new_actor(ScriptedEnv(LENGTHS, action_sizes=(2, 4)))
    mask = torch.tensor([[True] * 4, [False, True, True, True]])
    policy = actor.distribution(torch.zeros(2, 4), mask)
    assert policy.entropy().tolist() == pytest.approx([np.log(2), np.log(3)], rel=1e-6)


def test_which_actions_there_are_is_not_saved_with_the_weights() -> None:
    names = new_actor(ScriptedEnv(LENGTHS, action_sizes=(2, 4))).state_dict().keys()
    assert "present" not in names
    assert {name.partition(".")[0] for name in names} == {"norm", "body"}


def test_agents_with_fewer_dimensions_have_no_density_in_the_missing_ones() -> None:
    env = ScriptedEnv(LENGTHS, action_sizes=(1, 2), continuous=True)
    actor = new_actor(env)
    assert isinstance(actor, GaussianActor)
    policy = actor.distribution(torch.zeros(5, 2, 2))
    actions = policy.sample(actor.noise((5,), generator()))
    assert not actions[:, 0, 1].any()
    # Standard deviation e^-.5 and per dimension .5 log(2 pi e) - .5 = .9189 nats.
    assert policy.entropy()[0].tolist() == pytest.approx([0.9189, 1.8379], abs=1e-4)
    actions[:, 0, 1] = 50.0
    normal = torch.distributions.Normal(0.0, float(np.exp(-0.5)))
    expected = normal.log_prob(actions)
    log_probs = policy.log_prob(actions)
    assert torch.allclose(log_probs[:, 0], expected[:, 0, 0])
    assert torch.allclose(log_probs[:, 1], expected[:, 1].sum(dim=-1))


@pytest.mark.parametrize("continuous", [False, True])
def test_what_is_drawn_has_its_log_probability(continuous: bool) -> None:
    actor = new_actor(ScriptedEnv(LENGTHS, action_sizes=(2, 4), continuous=continuous))
    policy = actor.distribution(torch.randn(50, 2, 4, generator=generator()))
    noise = actor.noise((50,), generator())
    actions, log_probs = policy.draw(noise)
    assert torch.equal(actions, policy.sample(noise))
    assert torch.allclose(log_probs, policy.log_prob(actions), atol=1e-5)


def test_a_gaussian_by_hand() -> None:
    # Deviations 2 and 1. Noise 3 and .5: 1 + 2 * 3 and -1 + .5.
    policy = Gaussian(torch.tensor([[1.0, -1.0]]), torch.tensor([[math.log(2.0), 0.0]]), None)
    assert torch.allclose(policy.sample(torch.tensor([[3.0, 0.5]])), torch.tensor([[7.0, -0.5]]))
    assert torch.equal(policy.mode(), policy.mean)
    # 5 is two deviations above 1: -2 - log 2, and twice -log(2 pi) / 2 = -.918939.
    log_prob = policy.log_prob(torch.tensor([[5.0, -1.0]]))
    assert log_prob.item() == pytest.approx(-2.0 - math.log(2.0) - 2 * 0.918939, rel=1e-6)
    # Twice .5 + .918939, and log 2.
    assert policy.entropy().item() == pytest.approx(math.log(2.0) + 2 * 1.418939, rel=1e-6)


def test_discrete_actions_are_drawn_with_their_probabilities() -> None:
    actor, _, _ = masked_actor()
    logits = torch.tensor([0.1, 0.3, 0.6]).log().expand(20_000, 2, 3)
    drawn = actor.distribution(logits).sample(actor.noise((20_000,), generator()))
    shares = torch.bincount(drawn.flatten()) / 40_000
    # Standard errors below .0025.
    assert shares.tolist() == pytest.approx([0.1, 0.3, 0.6], abs=0.0125)


def test_the_environment_gets_clipped_actions_and_the_log_probability_the_unclipped() -> None:
    env = ScriptedEnv(LENGTHS, action_sizes=(2, 2), continuous=True)
    mappo = make_mappo(env.spec, network=dataclasses.replace(NETWORK, initial_log_std=0.5))
    rollout = collect(mappo, env)
    sampled, sent = rollout.sampled_actions, torch.as_tensor(np.stack(env.received))
    assert sampled.abs().max() > 1.0
    assert torch.equal(sent, sampled.clamp(-1.0, 1.0))
    means = mappo.actor(mappo.norm.obs(rollout.transitions.obs))
    normal = torch.distributions.Normal(means, float(np.exp(0.5)))
    expected = normal.log_prob(sampled).sum(dim=-1)
    assert torch.allclose(rollout.log_probs, expected, atol=1e-5)


@pytest.mark.parametrize("share_parameters", [True, False])
def test_each_agent_acts_on_its_own_observation(share_parameters: bool) -> None:
    network = dataclasses.replace(NETWORK, share_parameters=share_parameters)
    mappo = make_mappo(ScriptedEnv(LENGTHS).spec, network=network)
    obs = torch.randn(5, 2, 4, generator=generator())
    before = mappo.actor(mappo.norm.obs(obs))
    obs[3, 1] += 1.0
    moved = (mappo.actor(mappo.norm.obs(obs)) != before).any(dim=-1)
    assert moved.nonzero().tolist() == [[3, 1]]


def test_shared_agents_are_told_apart_by_their_ids() -> None:
    mappo = make_mappo(ScriptedEnv(LENGTHS).spec)
    logits = mappo.actor(mappo.norm.obs(torch.ones(2, 4)))
    assert not torch.equal(logits[0], logits[1])


def test_unshared_agents_have_weights_of_their_own() -> None:
    network = dataclasses.replace(NETWORK, share_parameters=False)
    actor = make_mappo(ScriptedEnv(LENGTHS).spec, network=network).actor
    logits = actor(torch.ones(2, 4))
    actor.zero_grad()
    logits[0].sum().backward()
    for parameter in actor.parameters():
        assert parameter.grad is not None
        assert not parameter.grad[1].any()
