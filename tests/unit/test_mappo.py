"""The update: gradients, minibatches, omega, annealing, loading.

Axes: T time, E environments, N agents.
"""

import copy
import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from envs import make_env
from marl.config import LearnerConfig, NetworkConfig
from marl.data.types import Rewards, Rollout
from marl.learners.gae import dual_advantages, read_inputs
from marl.learners.losses import clipped_policy_loss
from marl.learners.mappo import Ippo, Mappo
from marl.learners.minibatches import step_rows
from marl.nn.layers import NonFiniteError, check_finite, correlation
from marl.nn.normalisation import TeamNorm
from tests.learners import (
    CPU,
    LENGTHS,
    NETWORK,
    ONE_STEP,
    RECURRENT,
    assert_same,
    collect,
    generator,
    local_stream,
    make_mappo,
    parameters_after,
    random_rewards,
    team_stream,
)
from tests.scripted import ScriptedEnv


def test_a_row_of_a_minibatch_is_one_step_of_one_copy() -> None:
    env = ScriptedEnv(LENGTHS, agents_die=True, masks_actions=True)
    mappo = make_mappo(env.spec)
    rollout = collect(mappo, env)
    inputs = read_inputs(rollout, mappo.norm)
    rows = step_rows(
        obs=inputs.obs, state=inputs.state, log_probs=rollout.log_probs, absent=None
    ).tensors
    assert {name: len(tensor) for name, tensor in rows.items()} == {
        "obs": 24,
        "state": 24,
        "log_probs": 24,
    }
    # Row t * E + e: the state names the copy and the time, and so does every agent's observation.
    assert torch.equal(rows["state"][:, 0], torch.tensor([0.0, 1.0] * 12))
    assert torch.equal(rows["obs"][:, 1, :3], rows["state"])
    assert torch.equal(rows["log_probs"].view(12, 2, 2), rollout.log_probs)


def test_every_copy_has_a_seed_of_its_own_which_is_saved() -> None:
    def start(seed: int) -> Any:
        env = make_env("particles/nav_3", 4)
        return env, env.reset(seed).obs

    env, obs = start(5)
    assert len(np.unique(obs.reshape(4, -1), axis=0)) == 4
    np.testing.assert_array_equal(start(5)[1], obs)
    assert not np.array_equal(start(6)[1], obs)
    assert len(np.unique(env.state_dict()["inner"]["seeds"])) == 4


@pytest.mark.parametrize("share_parameters", [True, False])
@pytest.mark.parametrize("network", [NETWORK, RECURRENT], ids=["none", "gru"])
def test_layers_begin_with_their_gains(network: NetworkConfig, share_parameters: bool) -> None:
    """The actor's last layer with .01, so that all actions are about as likely; critics' with 1."""
    network = dataclasses.replace(network, share_parameters=share_parameters)
    mappo = make_mappo(ScriptedEnv(LENGTHS).spec, network=network)
    for name, gain in (("actor", 0.01), ("team", 1.0), ("local", 1.0)):
        body: Any = mappo.networks[name].body
        is_recurrent = network.recurrence == "gru"
        first, last = (body.before, body.after) if is_recurrent else (body, body)
        for layer, expected in ((first[0], 2**0.5), (last[-1], gain)):
            norms = torch.linalg.matrix_norm(layer.weight.detach(), 2).flatten()
            assert norms.tolist() == pytest.approx([expected] * len(norms), rel=1e-4)
            assert not layer.bias.any()


def test_the_policy_loss_by_hand() -> None:
    # Ratios 2 and .5, clip .2. Advantage 1: min(2, 1.2) and min(.5, .8); -1: min(-2, -1.2) and
    # min(-.5, -.8). The loss is their negative.
    log_ratio = torch.tensor([[2.0, 0.5], [2.0, 0.5]]).log()
    advantages = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
    loss, found = clipped_policy_loss(log_ratio - 1.0, -torch.ones(2, 2), advantages, 0.2)
    assert torch.allclose(loss, torch.tensor([[-1.2, -0.5], [2.0, 0.8]]))
    assert torch.allclose(found, log_ratio)


def test_a_huge_critic_gradient_does_not_shrink_the_actors() -> None:
    """Gradients are clipped network by network."""
    env = ScriptedEnv(LENGTHS)
    learner = dataclasses.replace(ONE_STEP, max_grad_norm=1e-3)
    norms: list[dict[str, float]] = []
    for wrong_by in (0.0, 1e6):
        mappo = make_mappo(env.spec, dataclasses.replace(learner, local_weight=1.0))
        rollout = collect(mappo, env)
        with torch.no_grad():
            mappo.critics["team"].body[-1].bias.fill_(wrong_by)
        mappo.update(rollout, random_rewards(rollout), 1.0)
        norms.append({name: gradient_norm(n) for name, n in mappo.networks.items()})
    limit = pytest.approx(1e-3, rel=1e-2)
    assert norms[0] == {"actor": limit, "local": limit, "team": limit}
    assert norms[1]["team"] == limit
    assert norms[1]["actor"] == norms[0]["actor"]
    assert norms[1]["local"] == norms[0]["local"]


def gradient_norm(network: nn.Module) -> float:
    grads = [p.grad.flatten() for p in network.parameters() if p.grad is not None]
    return torch.cat(grads).norm().item()


def test_the_first_step_of_adam_by_hand() -> None:
    """It goes against g by the learning rate times |g| / (|g| + 1e-5), g clipped to be as small."""
    env = ScriptedEnv(LENGTHS)
    mappo = make_mappo(env.spec, dataclasses.replace(ONE_STEP, max_grad_norm=1e-4, anneal=False))
    rollout = collect(mappo, env)
    before = copy.deepcopy(mappo.networks)
    mappo.update(rollout, random_rewards(rollout), 1.0)
    for name, network in mappo.networks.items():
        for left, right in zip(before[name].parameters(), network.parameters(), strict=True):
            grad = right.grad
            assert grad is not None
            expected = left - 1e-3 * grad / (grad.abs() + 1e-5)
            assert torch.allclose(right, expected, atol=1e-7)


def test_metrics_are_means_over_minibatches_and_epochs() -> None:
    """Of equal size, and so small steps that the networks stay as they are."""
    env = ScriptedEnv(LENGTHS)
    settings = LearnerConfig(learning_rate=1e-9, entropy_coef=0.1)
    several, one = (
        make_mappo(env.spec, dataclasses.replace(settings, epochs=epochs, minibatches=minibatches))
        for epochs, minibatches in ((3, 4), (1, 1))
    )
    rollout = collect(one, env)
    rewards = random_rewards(rollout)
    found, expected = (mappo.update(rollout, rewards, 1.0) for mappo in (several, one))
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-6)
    # Three actions, at first about as likely: the loss is - .1 log 3, advantages of mean zero.
    assert expected["policy/loss"] == pytest.approx(-0.1 * np.log(3.0), rel=1e-3)


@pytest.mark.parametrize("kind", [Mappo, Ippo])
def test_how_far_local_and_team_advantages_agree(kind: type[Mappo]) -> None:
    env = ScriptedEnv(LENGTHS, agents_die=True)
    mappo = make_mappo(env.spec, kind=kind)
    rollout = collect(mappo, env)
    rewards, alive = random_rewards(rollout), rollout.transitions.alive
    assert alive is not None
    team = team_stream(mappo, rollout, rewards).advantages
    local = local_stream(mappo, rollout, rewards).advantages
    team = team if kind is Ippo else team.unsqueeze(-1).expand_as(local)
    expected = torch.corrcoef(torch.stack((local[alive], team[alive])))[0, 1]
    metrics = mappo.update(rollout, rewards, 1.0)
    assert metrics["policy/advantage_correlation"] == pytest.approx(expected.item(), abs=1e-5)


def test_omega_zero_makes_the_learner_of_the_shared_reward() -> None:
    """No local critic is built, and the local rewards leave no trace, bit for bit."""
    env = ScriptedEnv(LENGTHS)
    off = dataclasses.replace(ONE_STEP, local_weight=0.0)
    mappo = make_mappo(env.spec, off)
    assert "local" not in mappo.critics
    rollout = collect(mappo, env)
    rewards = random_rewards(rollout)
    assert rewards.local is not None
    broken = Rewards(team=rewards.team, local=torch.full_like(rewards.local, float("nan")))
    without = parameters_after(mappo, rollout, Rewards(team=rewards.team))
    assert_same(without, parameters_after(mappo, rollout, broken))
    plain = Mappo(
        env.spec,
        NETWORK,
        ONE_STEP,
        mappo.norm,
        local_stream=False,
        threads=1,
        generator=generator(),
        device=CPU,
    )
    assert_same(without, parameters_after(plain, rollout, Rewards(team=rewards.team)))


def test_the_step_size_is_annealed() -> None:
    env = ScriptedEnv(LENGTHS)
    for anneal, expected in ((True, 0.25e-3), (False, 1e-3)):
        mappo = make_mappo(env.spec, dataclasses.replace(ONE_STEP, anneal=anneal))
        rollout = collect(mappo, env)
        metrics = mappo.update(rollout, random_rewards(rollout), 0.25)
        assert metrics["policy/learning_rate"] == pytest.approx(expected)


def test_every_row_is_used_once_per_epoch() -> None:
    # 24 rows in 5 minibatches: sizes 5, 5, 5, 5, 4.
    mappo = make_mappo(ScriptedEnv(LENGTHS).spec, LearnerConfig(epochs=2, minibatches=5))
    epochs = mappo._minibatches(collect(mappo, ScriptedEnv(LENGTHS)))
    assert [[len(rows) for rows in epoch] for epoch in epochs] == [[5, 5, 5, 5, 4]] * 2
    for epoch in epochs:
        assert sorted(torch.cat(list(epoch)).tolist()) == list(range(24))
    assert not torch.equal(torch.cat(list(epochs[0])), torch.cat(list(epochs[1])))


@pytest.mark.parametrize("network", [NETWORK, RECURRENT], ids=["none", "gru"])
def test_threads_change_no_number(network: NetworkConfig) -> None:
    env = ScriptedEnv(LENGTHS)
    learner = LearnerConfig(epochs=3, minibatches=2)
    results = []
    for threads in (1, 2):
        mappo = Mappo(
            env.spec,
            network,
            learner,
            TeamNorm(env.spec, enabled=False),
            local_stream=True,
            threads=threads,
            generator=generator(),
            device=CPU,
        )
        rollout = collect(mappo, env)
        metrics = mappo.update(rollout, random_rewards(rollout), 1.0)
        states = [network.state_dict() for network in mappo.networks.values()]
        results.append((metrics, states))
    assert results[0][0] == results[1][0]
    for left, right in zip(results[0][1], results[1][1], strict=True):
        assert_same(left, right)


@pytest.mark.parametrize("share_parameters", [True, False])
@pytest.mark.parametrize("network", [NETWORK, RECURRENT], ids=["none", "gru"])
def test_loading_continues_an_update_bit_for_bit(
    network: NetworkConfig, share_parameters: bool
) -> None:
    """Optimizer moments, value statistics and hidden states come back, not only the networks."""
    env = ScriptedEnv(LENGTHS)
    network = dataclasses.replace(network, share_parameters=share_parameters)
    learner = LearnerConfig(epochs=2, minibatches=2)
    mappo, other = (make_mappo(env.spec, learner, network=network) for _ in range(2))
    rollout = collect(mappo, env)
    mappo.update(rollout, random_rewards(rollout), 1.0)
    other.load_state_dict(copy.deepcopy(mappo.state_dict()))
    rewards = random_rewards(rollout)
    assert_same(
        parameters_after(mappo, rollout, rewards), parameters_after(other, rollout, rewards)
    )


@pytest.mark.parametrize(
    ("dies", "absence"), [(True, "ends"), (True, "alive_mean"), (False, "alive_mean")]
)
@pytest.mark.parametrize("continuous", [True, False])
@pytest.mark.parametrize("network", [NETWORK, RECURRENT], ids=["none", "gru"])
@pytest.mark.parametrize("kind", [Mappo, Ippo])
def test_the_gradients_of_an_update_are_those_of_its_losses(
    kind: type[Mappo], network: NetworkConfig, continuous: bool, dies: bool, absence: Any
) -> None:
    """Of the losses written out over the whole rollout, with ratios on both sides of the clip."""
    env = ScriptedEnv(
        [[3, 5], [4, 2, 6], [5]],
        agents_die=dies,
        continuous=continuous,
        masks_actions=not continuous,
        action_sizes=(1, 1) if continuous else (3, 3),
    )
    settings = dataclasses.replace(
        ONE_STEP,
        entropy_coef=0.1,
        max_grad_norm=1e9,
        chunk_length=12,
        local_weight=0.25,
        absence=absence,
    )
    mappo = make_mappo(env.spec, settings, network=network, kind=kind)
    rollout = collect(mappo, env, steps=10)  # a chunk of twelve steps is filled up
    noise = 0.4 * torch.randn(rollout.log_probs.shape, generator=generator())
    rollout = dataclasses.replace(rollout, log_probs=rollout.log_probs + noise)
    rewards, steps = random_rewards(rollout), rollout.transitions
    streams = {
        "team": team_stream(mappo, rollout, rewards),
        "local": local_stream(mappo, rollout, rewards),
    }
    advantages = dual_advantages(
        streams["team"].advantages, streams["local"].advantages, steps.alive, 2, 0.25
    )
    before = copy.deepcopy(mappo)
    for net in mappo.networks.values():
        for parameter in net.parameters():
            assert parameter.grad is not None
            parameter.grad.fill_(7.0)  # left by an earlier step
    metrics = mappo.update(rollout, rewards, 1.0)
    everywhere = torch.ones_like(rollout.log_probs, dtype=torch.bool)
    alive = everywhere if steps.alive is None else steps.alive

    outputs = read(before.actor, rollout, steps.obs)
    policy = before.actor.distribution(outputs, steps.action_mask)
    ratio = (policy.log_prob(rollout.sampled_actions) - rollout.log_probs).exp()
    clipped = ratio.clamp(0.8, 1.2)
    assert (ratio != clipped)[alive].any()
    gain = torch.minimum(ratio * advantages, clipped * advantages)[alive].mean()
    loss = -gain - 0.1 * policy.entropy()[alive].mean()
    assert metrics["policy/loss"] == pytest.approx(loss.item(), abs=1e-5)
    assert_gradients(mappo.actor, before.actor, loss)
    for name, stream in streams.items():
        # Where the absent have a value, too, their critic sees zeros.
        everyone = name == "team" or absence != "ends"
        hides = everyone and (kind is Ippo or name == "local")
        obs = steps.obs * alive.unsqueeze(-1) if hides else steps.obs
        values = read(before.critics[name], rollout, obs, steps.state)
        errors = 0.5 * (values - stream.targets) ** 2
        loss = errors.mean() if everyone else errors[alive].mean()
        assert metrics[f"value/loss_{name}"] == pytest.approx(loss.item(), rel=1e-4)
        assert_gradients(mappo.critics[name], before.critics[name], loss)


def read(network: Any, rollout: Rollout, *inputs: torch.Tensor) -> torch.Tensor:
    """Return a network's outputs for a rollout, recorded by autograd."""
    network.passes = None
    if not hasattr(network.body, "gru"):
        outputs: torch.Tensor = network(*inputs)
        return outputs
    hidden = torch.zeros(rollout.truncated.shape[1], *network.body.hidden_shape)
    return network.unroll(*inputs, hidden, rollout.starts)[0]


def assert_gradients(found: nn.Module, network: nn.Module, loss: torch.Tensor) -> None:
    """Compare the gradients of an updated network with those of the loss of the one before."""
    gradients = torch.autograd.grad(loss, list(network.parameters()))
    for (name, parameter), gradient in zip(found.named_parameters(), gradients, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-6, msg=name)


def test_steps_become_smaller_with_the_learning_rate() -> None:
    env = ScriptedEnv(LENGTHS)
    mappo = make_mappo(env.spec)
    rollout = collect(mappo, env)
    rewards = random_rewards(rollout)
    moved = []
    for remaining in (1.0, 0.25):
        other = copy.deepcopy(mappo)
        other.update(rollout, rewards, remaining)
        pairs = zip(other.actor.parameters(), mappo.actor.parameters(), strict=True)
        moved.append(torch.cat([(after - start).flatten() for after, start in pairs]))
    assert torch.allclose(0.25 * moved[0], moved[1], atol=1e-7)


def test_rewards_that_are_advantages_carry_the_critics_hidden_state_on() -> None:
    env = ScriptedEnv(LENGTHS)
    mappo = make_mappo(env.spec, network=RECURRENT)
    rollout = collect(mappo, env)
    advanced = copy.deepcopy(mappo)
    advanced.advance(rollout)
    mappo.update(rollout, dataclasses.replace(random_rewards(rollout), are_advantages=True), 1.0)
    for name, hidden in mappo.hidden.items():
        expected = advanced.hidden[name]
        assert hidden is not None
        assert expected is not None
        assert torch.equal(hidden, expected)
        assert hidden.any()


def test_a_loss_that_is_not_finite_stops_the_update() -> None:
    env = ScriptedEnv(LENGTHS)
    mappo = make_mappo(env.spec)
    rollout = collect(mappo, env)
    rollout.log_probs[0, 0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match=r"^policy/loss holds NaN"):
        mappo.update(rollout, random_rewards(rollout), 1.0)


@pytest.mark.parametrize("continuous", [True, False])
@pytest.mark.parametrize("dies", [True, False])
@pytest.mark.parametrize("absence", ["ends", "alive_mean"])
@pytest.mark.parametrize("network", [NETWORK, RECURRENT], ids=["feed-forward", "gru"])
def test_written_out_gradients_are_those_of_autograd(
    continuous: bool, dies: bool, absence: Any, network: NetworkConfig
) -> None:
    """One gradient step of every network agrees to float noise; Adam's may not hide a scale."""
    env = ScriptedEnv(LENGTHS, agents_die=dies, continuous=continuous, masks_actions=not continuous)
    learner = dataclasses.replace(ONE_STEP, entropy_coef=0.01, absence=absence, max_grad_norm=1e3)
    mappo = make_mappo(env.spec, learner, network=network)
    rollout = collect(mappo, env)
    rewards = random_rewards(rollout)
    gradients = []
    for explicit in (True, False):
        other = copy.deepcopy(mappo)
        assert all(each.passes is not None for each in other.networks.values())
        if not explicit:
            for each in other.networks.values():
                each.passes = None
        other.update(rollout, rewards, 1.0)
        gradients.append(
            {
                f"{name}.{key}": parameter.grad
                for name, each in other.networks.items()
                for key, parameter in each.named_parameters()
            }
        )
    for name, expected in gradients[1].items():
        assert expected is not None
        assert expected.any(), name
        torch.testing.assert_close(gradients[0][name], expected, rtol=1e-4, atol=1e-6)


def test_an_update_does_not_edit_the_rollout() -> None:
    env = ScriptedEnv(LENGTHS, agents_die=True, masks_actions=True)
    mappo = make_mappo(env.spec)
    rollout = collect(mappo, env)
    rewards = random_rewards(rollout)
    before = copy.deepcopy((rollout, rewards))
    mappo.update(rollout, rewards, 1.0)
    for left, right in zip(
        (rollout.transitions, rewards), (before[0].transitions, before[1]), strict=True
    ):
        for name, tensor in vars(left).items():
            if isinstance(tensor, torch.Tensor):
                assert torch.equal(tensor, getattr(right, name)), name
            else:
                assert getattr(right, name) is tensor, name


def test_a_reward_that_is_not_finite_stops_the_update() -> None:
    env = ScriptedEnv(LENGTHS)
    mappo = make_mappo(env.spec)
    rollout = collect(mappo, env)
    rewards = random_rewards(rollout)
    rewards.team[3, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="advantages holds NaN"):
        mappo.update(rollout, rewards, 1.0)


def test_check_finite_names_the_culprit() -> None:
    check_finite(good=torch.ones(2))
    with pytest.raises(NonFiniteError, match="bad holds NaN or infinity"):
        check_finite(good=torch.ones(2), bad=torch.tensor([1.0, float("inf")]))


def test_correlation_by_hand() -> None:
    x = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    y = torch.tensor([[0.0], [1.0]])
    # x - 3 = -2, -1, 0, 3; y - .5 = -.5, -.5, .5, .5: covariance 3 / 4, variances 14 / 4 and 1 / 4.
    assert correlation(x, y).item() == pytest.approx(0.75 / (3.5 * 0.25) ** 0.5)
    present = torch.tensor([[True, False], [True, False]])
    assert correlation(x, y, present).item() == pytest.approx(1.0)
    assert correlation(torch.ones(3), torch.arange(3.0)).item() == 0.0  # not NaN
