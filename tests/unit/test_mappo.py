"""The traps of multi-agent PPO, each as a test.

Axes: T time, E environments, N agents, A actions.
"""

import copy
import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from envs import EnvSpec, make_env
from marl.config import LearnerConfig, NetworkConfig
from marl.mappo import Mappo, _flat, clipped_policy_loss, clipped_value_loss
from marl.networks import CategoricalActor, GaussianActor, TeamCritic, make_actor
from marl.normalisers import InputNorm, TeamNorm, ValueNorm
from marl.numerics import NonFiniteError, check_finite, correlation, masked_mean
from marl.rollout import Collector
from marl.streams import Stream, read_inputs, reward_stream
from marl.types import Rewards, Rollout
from tests.scripted import ScriptedEnv

CPU = torch.device("cpu")
NETWORK = NetworkConfig(hidden_sizes=(8,))
ONE_STEP = LearnerConfig(epochs=1, minibatches=1)
LENGTHS = [[3, 5], [4, 2, 6]]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_mappo(
    spec: EnvSpec, learner: LearnerConfig = ONE_STEP, *, network: NetworkConfig = NETWORK
) -> Mappo:
    norm = TeamNorm(spec, enabled=False)
    return Mappo(
        spec,
        network,
        learner,
        norm,
        local_stream=True,
        threads=1,
        generator=generator(),
        device=CPU,
    )


def collect(mappo: Mappo, env: Any, steps: int = 12) -> Rollout:
    """Return one rollout under the learner's own actor."""
    collector = Collector(env, mappo.norm, steps, seed=0, generator=generator(), device=CPU)
    return copy.deepcopy(collector.collect(mappo.actor)[0])


def random_rewards(rollout: Rollout) -> Rewards:
    source = generator(7)
    shape = rollout.log_probs.shape
    return Rewards(
        team=torch.randn(shape[:2], generator=source),
        local=torch.randn(shape, generator=source),
    )


def changed(rollout: Rollout, **fields: Any) -> Rollout:
    return dataclasses.replace(
        rollout, transitions=dataclasses.replace(rollout.transitions, **fields)
    )


def parameters_after(
    mappo: Mappo, rollout: Rollout, rewards: Rewards
) -> dict[str, Tensor]:
    """Return all parameters and statistics after one update of a copy of the learner."""
    mappo = copy.deepcopy(mappo)
    mappo.generator = generator(3)
    mappo.update(rollout, rewards, 1.0)
    return {
        f"{name}.{key}": tensor
        for name, descent in mappo.descents.items()
        for key, tensor in descent.network.state_dict().items()
    }


def assert_same(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert torch.equal(tensor, right[name]), name


def team_stream(mappo: Mappo, rollout: Rollout, rewards: Rewards) -> Stream:
    """Return the team's stream; the learner's value statistics stay as they are."""
    inputs, critic = read_inputs(rollout, mappo.norm), copy.deepcopy(mappo.team_critic)
    with torch.no_grad():
        return reward_stream(critic, rewards.team, inputs, rollout, mappo.config, per_agent=False)


def local_stream(mappo: Mappo, rollout: Rollout, rewards: Rewards) -> Stream:
    """Return the agents' streams; the learner's value statistics stay as they are."""
    assert rewards.local is not None
    inputs, critic = read_inputs(rollout, mappo.norm), copy.deepcopy(mappo.local_critics)
    assert critic is not None
    with torch.no_grad():
        return reward_stream(critic, rewards.local, inputs, rollout, mappo.config, per_agent=True)


# Truncation


def test_a_truncation_bootstraps_with_the_value_of_the_real_final_state() -> None:
    mappo = make_mappo(ScriptedEnv(LENGTHS).spec)
    rollout = collect(mappo, ScriptedEnv(LENGTHS))
    rewards, steps = random_rewards(rollout), rollout.transitions
    where = rollout.truncated.nonzero()[0].tolist()
    stream = team_stream(mappo, rollout, rewards)
    with torch.no_grad():
        final = mappo.team_critic(mappo.norm.obs(steps.next_obs), steps.next_state)
    t, copy_ = where
    # An episode's last step has no trace behind it: its advantage is its own delta.
    delta = rewards.team[t, copy_] + 0.99 * final[t, copy_] - stream.values[t, copy_]
    assert stream.advantages[t, copy_].item() == pytest.approx(delta.item(), abs=1e-5)
    moved = steps.next_state.clone()
    moved[t, copy_] += 1.0
    other = team_stream(mappo, changed(rollout, next_state=moved), rewards)
    assert not torch.equal(other.advantages[: t + 1, copy_], stream.advantages[: t + 1, copy_])
    assert torch.equal(other.advantages[t + 1 :], stream.advantages[t + 1 :])


def test_a_termination_does_not_bootstrap() -> None:
    mappo = make_mappo(ScriptedEnv(LENGTHS).spec)
    rollout = collect(mappo, ScriptedEnv(LENGTHS))
    rewards, steps = random_rewards(rollout), rollout.transitions
    stream = team_stream(mappo, rollout, rewards)
    t, copy_ = steps.terminated.nonzero()[0].tolist()
    delta = rewards.team[t, copy_] - stream.values[t, copy_]
    assert stream.advantages[t, copy_].item() == pytest.approx(delta.item(), abs=1e-5)


def test_the_reset_state_is_worth_nothing_to_the_episode_before_it() -> None:
    mappo = make_mappo(ScriptedEnv(LENGTHS).spec)
    rollout = collect(mappo, ScriptedEnv(LENGTHS))
    rewards = random_rewards(rollout)
    t, copy_ = rollout.done.nonzero()[0].tolist()
    state = rollout.transitions.state.clone()
    state[t + 1, copy_] += 100.0
    before = team_stream(mappo, rollout, rewards).advantages
    after = team_stream(mappo, changed(rollout, state=state), rewards).advantages
    assert torch.equal(before[: t + 1], after[: t + 1])
    assert before[t + 1, copy_] != after[t + 1, copy_]


@pytest.mark.parametrize("stream", [team_stream, local_stream])
def test_cutting_a_rollout_in_two_changes_no_bootstrap(stream: Any) -> None:
    """The last row bootstraps from what it led to, as if the next row were there (lambda = 0)."""
    mappo = make_mappo(ScriptedEnv(LENGTHS).spec, LearnerConfig(gae_lambda=0.0))
    rollout = collect(mappo, ScriptedEnv(LENGTHS))
    rewards = random_rewards(rollout)
    whole = stream(mappo, rollout, rewards).advantages
    half = Rollout(
        transitions=type(rollout.transitions)(
            **{k: None if v is None else v[:6] for k, v in vars(rollout.transitions).items()}
        ),
        truncated=rollout.truncated[:6],
        log_probs=rollout.log_probs[:6],
        task_rewards=rollout.task_rewards[:6],
        episodes=rollout.episodes,
    )
    assert rewards.local is not None
    part = stream(mappo, half, Rewards(team=rewards.team[:6], local=rewards.local[:6])).advantages
    assert torch.allclose(part, whole[:6], atol=1e-6)


# The value normaliser


def test_value_statistics_are_saved_with_the_critic() -> None:
    critic = TeamCritic(ScriptedEnv(LENGTHS).spec, NETWORK, generator())
    assert {f"value_norm.{n}" for n in ("first", "second", "weight")} <= critic.state_dict().keys()
    assert not any("value_norm" in name for name, _ in critic.named_parameters())


def test_value_statistics_by_hand() -> None:
    # Rate .01, corrected for the start at zero: the first batch counts alone (mean 2, deviation
    # 1); then weights .99 * .01 and .01 on means 2 and 4 and squares 5 and 16.
    norm = ValueNorm()
    assert (float(norm.mean), float(norm.std)) == (0.0, 1.0)
    norm.update(torch.tensor([1.0, 3.0]))
    assert norm.mean.item() == pytest.approx(2.0, rel=1e-5)
    assert norm.std.item() == pytest.approx(1.0, rel=1e-4)
    norm.update(torch.tensor([4.0]))
    mean, second = (0.99 * 2 + 4) / 1.99, (0.99 * 5 + 16) / 1.99
    assert norm.mean.item() == pytest.approx(mean, rel=1e-5)
    assert norm.std.item() == pytest.approx((second - mean**2) ** 0.5, rel=1e-4)
    values = torch.tensor([-3.0, 0.0, 7.0])
    assert torch.allclose(norm.denormalise(norm.normalise(values)), values, atol=1e-5)


def test_value_statistics_survive_targets_far_from_zero() -> None:
    # Mean 1,000, deviation .1: the square of the mean must not drown the variance.
    norm = ValueNorm()
    targets = 1000.0 + 0.1 * torch.randn(4096, generator=generator())
    for _ in range(3):
        norm.update(targets)
    assert norm.std.item() == pytest.approx(0.1, rel=0.05)


def test_values_are_denormalised_before_gae() -> None:
    mappo = make_mappo(ScriptedEnv(LENGTHS).spec)
    rollout = collect(mappo, ScriptedEnv(LENGTHS))
    rewards = random_rewards(rollout)
    mappo.team_critic.value_norm.update(torch.tensor([90.0, 110.0]))  # mean 100, deviation 10
    stream = team_stream(mappo, rollout, rewards)
    values = 10.0 * stream.values + 100.0
    t, copy_ = rollout.transitions.terminated.nonzero()[0].tolist()
    delta = rewards.team[t, copy_] - values[t, copy_]
    assert stream.advantages[t, copy_].item() == pytest.approx(delta.item(), rel=1e-3)
    # Targets are what the critic is trained to put out, in the statistics that include this batch.
    targets = stream.advantages + values
    gaps, expected = stream.targets.diff(dim=0), targets.diff(dim=0)
    scale = (gaps * expected).sum() / (gaps * gaps).sum()
    assert torch.allclose(scale * gaps, expected, atol=1e-2)


def test_value_statistics_are_updated_once_per_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    mappo = make_mappo(ScriptedEnv(LENGTHS).spec, LearnerConfig(epochs=3, minibatches=4))
    calls: list[int] = []
    update = ValueNorm.update

    def counted(self: ValueNorm, targets: Tensor, present: Tensor | None = None) -> None:
        calls.append(targets.numel())
        update(self, targets, present)

    monkeypatch.setattr(ValueNorm, "update", counted)
    rollout = collect(mappo, ScriptedEnv(LENGTHS))
    mappo.update(rollout, random_rewards(rollout), 1.0)
    assert calls == [24, 48]  # 12 steps of 2 copies; times 2 agents


def test_value_statistics_ignore_dead_rows() -> None:
    norm, living = ValueNorm(), ValueNorm()
    present = torch.tensor([True, False, True])
    norm.update(torch.tensor([1.0, 1e6, 3.0]), present)
    living.update(torch.tensor([1.0, 3.0]))
    assert_same(norm.state_dict(), living.state_dict())
    norm.update(torch.tensor([5.0]), torch.tensor([False]))
    assert_same(norm.state_dict(), living.state_dict())


def test_value_clipping_by_hand() -> None:
    # Old .0, new .5, target 1, clip .2: plain .5 (.5)^2 = .125, clipped .5 (.8)^2 = .32: the
    # larger. Moving away from the target (new -.5) the plain one is larger: .5 (1.5)^2.
    one = torch.ones(())
    losses = [clipped_value_loss(v * one, 0 * one, one, 0.2).item() for v in (0.5, -0.5, 0.1)]
    assert losses == pytest.approx([0.32, 1.125, 0.405])
    assert clipped_value_loss(0.5 * one, 0 * one, one, 0.0).item() == pytest.approx(0.125)


def test_value_clipping_compares_values_in_one_scale() -> None:
    """Old values and targets of a minibatch are both what the critic puts out, not rewards."""
    mappo = make_mappo(ScriptedEnv(LENGTHS).spec)
    rollout = collect(mappo, ScriptedEnv(LENGTHS))
    rewards = random_rewards(rollout)
    far = Rewards(team=1e4 * rewards.team, local=rewards.local)
    mappo.update(rollout, far, 1.0)
    stream = team_stream(mappo, rollout, far)
    with torch.no_grad():
        outputs = mappo.team_critic(mappo.norm.obs(rollout.transitions.obs), rollout.transitions.state)
    assert torch.equal(stream.values, outputs)
    assert stream.targets.abs().max() < 10.0
    assert stream.advantages.abs().max() > 1e4


# Agents that die


def test_dead_agents_leave_every_part_of_the_update() -> None:
    """Policy and value losses, entropy, statistics and gradients: nothing of theirs matters."""
    options = {"agents_die": True}
    env = ScriptedEnv([[4], [4]], obs_sizes=(4, 4, 4), action_sizes=(3, 3, 3), **options)
    mappo = make_mappo(env.spec, LearnerConfig(entropy_coef=0.1, epochs=2, minibatches=2))
    rollout = collect(mappo, env)
    rewards, steps = random_rewards(rollout), rollout.transitions
    assert steps.alive is not None
    assert rewards.local is not None
    dead = ~steps.alive
    assert dead.any()
    obs, next_obs = steps.obs.clone(), steps.next_obs.clone()
    obs[dead] = 5.0
    assert steps.next_alive is not None
    next_obs[~steps.next_alive] = 5.0
    other = changed(
        rollout,
        obs=obs,
        next_obs=next_obs,
        actions=torch.where(dead, (steps.actions + 1) % 3, steps.actions),
    )
    other = dataclasses.replace(other, log_probs=rollout.log_probs.where(~dead, torch.tensor(3.0)))
    noisy = Rewards(team=rewards.team, local=rewards.local.where(~dead, torch.tensor(1e3)))
    assert_same(parameters_after(mappo, rollout, rewards), parameters_after(mappo, other, noisy))


def test_a_death_ends_an_agents_stream_of_rewards() -> None:
    """Its last living step is followed by nothing: no value and no trace."""
    env = ScriptedEnv([[8]], agents_die=True)  # agent 0 lives in step 0, agent 1 in steps 0 and 1
    mappo = make_mappo(env.spec)
    rollout = collect(mappo, env, steps=6)
    rewards = random_rewards(rollout)
    assert rewards.local is not None
    stream = local_stream(mappo, rollout, rewards)
    delta = rewards.local[0, 0, 0] - stream.values[0, 0, 0]
    assert stream.advantages[0, 0, 0].item() == pytest.approx(delta.item(), abs=1e-6)
    delta = rewards.local[1, 0, 1] - stream.values[1, 0, 1]
    assert stream.advantages[1, 0, 1].item() == pytest.approx(delta.item(), abs=1e-6)


def test_a_minibatch_of_the_dead_has_zero_loss_and_zero_gradient() -> None:
    x = torch.randn(3, 2, requires_grad=True)
    loss = masked_mean(x.exp(), torch.zeros(3, 2, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0.0
    assert x.grad is not None
    assert not x.grad.any()


@pytest.mark.filterwarnings("ignore:var")  # the variance that is explained of nothing
def test_an_update_on_the_dead_alone_moves_no_actor() -> None:
    env = ScriptedEnv([[4], [4]], agents_die=True)
    mappo = make_mappo(env.spec, LearnerConfig(entropy_coef=0.1))
    rollout = collect(mappo, env)
    nobody = torch.zeros_like(rollout.log_probs, dtype=torch.bool)
    rollout = changed(rollout, alive=nobody, next_alive=nobody)
    before = copy.deepcopy(mappo.actor.state_dict())
    metrics = mappo.update(rollout, random_rewards(rollout), 1.0)
    assert metrics["policy/loss"] == 0.0
    assert metrics["policy/kl"] == 0.0
    assert_same(before, mappo.actor.state_dict())


def test_masked_mean_by_hand() -> None:
    present = torch.tensor([True, False, True])
    assert masked_mean(torch.tensor([1.0, 100.0, 3.0]), present).item() == 2.0
    assert masked_mean(torch.tensor([1.0, float("nan"), 3.0]), present).item() == 2.0


def test_dead_agents_leave_the_input_statistics() -> None:
    # Agent 0 shows 1 and 3 while alive, agent 1 is dead throughout; then agent 1 shows 4 and 6.
    norm = InputNorm(2, 1)
    present = torch.tensor([[True, False], [True, False], [False, False]])
    norm.update(torch.tensor([[[1.0], [9.0]], [[3.0], [9.0]], [[9.0], [9.0]]]), present)
    assert norm.mean.flatten().tolist() == [2.0, 0.0]
    assert norm.var.flatten().tolist() == [1.0, 1.0]
    present = torch.tensor([[False, True], [False, True], [True, False]])
    norm.update(torch.tensor([[[9.0], [4.0]], [[9.0], [6.0]], [[5.0], [9.0]]]), present)
    # Agent 0 has seen 1, 3, 5: mean 3, variance 8 / 3. Agent 1 has seen 4, 6: mean 5, variance 1.
    assert norm.mean.flatten().tolist() == pytest.approx([3.0, 5.0])
    assert norm.var.flatten().tolist() == pytest.approx([8 / 3, 1.0])


def test_input_statistics_in_parts_equal_the_whole() -> None:
    x = 3.0 + 2.0 * torch.randn(50, 2, 3, generator=generator())
    norm = InputNorm(2, 3)
    for part in x.split([7, 30, 13]):
        norm.update(part)
    assert torch.allclose(norm.mean, x.mean(dim=0), atol=1e-5)
    assert torch.allclose(norm.var, x.var(dim=0, correction=0), atol=1e-4)
    standardised = norm(x)
    assert torch.allclose(standardised.mean(dim=0), torch.zeros(2, 3), atol=1e-5)
    assert torch.allclose(standardised.std(dim=0, correction=0), torch.ones(2, 3), atol=1e-4)


# Masked and ragged actions


def masked_actor() -> tuple[CategoricalActor, Tensor, Tensor]:
    """Return an actor, strong wishes for action 0, and a mask that forbids it to agent 0."""
    actor = make_actor(ScriptedEnv(LENGTHS).spec, NETWORK, generator())
    assert isinstance(actor, CategoricalActor)
    logits = torch.tensor([5.0, 0.0, 0.0]).expand(1000, 2, 3).clone().requires_grad_()
    mask = torch.ones(1000, 2, 3, dtype=torch.bool)
    mask[:, 0, 0] = False
    return actor, logits, mask


def test_an_illegal_action_is_never_drawn() -> None:
    actor, logits, mask = masked_actor()
    drawn = actor.sample(logits, actor.noise((1000,), generator()), mask)
    assert (drawn[:, 0] > 0).all()
    assert (drawn[:, 1] == 0).any()
    assert (actor.mode(logits, mask)[:, 0] > 0).all()


def test_an_illegal_action_has_exactly_zero_probability_and_gradient() -> None:
    actor, logits, mask = masked_actor()
    actions = torch.zeros(1000, 2, dtype=torch.int64)
    assert (actor.log_prob(logits, actions, mask)[:, 0].exp() == 0.0).all()
    legal = torch.ones(1000, 2, dtype=torch.int64)
    # Two equally likely actions are left to agent 0; agent 1 has 1 / (2 + e^5) for action 1.
    probs = actor.log_prob(logits, legal, mask).exp()
    assert probs[0].tolist() == pytest.approx([0.5, 1 / (2 + np.exp(5))])
    probs.sum().backward()
    assert logits.grad is not None
    assert (logits.grad[:, 0, 0] == 0.0).all()


def test_an_illegal_action_adds_nothing_to_the_entropy() -> None:
    actor, logits, mask = masked_actor()
    entropy = actor.entropy(logits, mask)
    assert entropy[:, 0].tolist() == pytest.approx([np.log(2.0)] * 1000, rel=1e-6)
    entropy.sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert (logits.grad[:, 0, 0] == 0.0).all()


def test_a_single_legal_action_has_no_entropy_and_no_gradient() -> None:
    actor, logits, mask = masked_actor()
    mask[:] = False
    mask[..., 2] = True
    chosen = torch.full((1000, 2), 2)
    assert (actor.sample(logits, actor.noise((1000,), generator()), mask) == 2).all()
    loss = actor.log_prob(logits, chosen, mask).sum() + actor.entropy(logits, mask).sum()
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
    log_probs = mappo.actor.log_prob(
        mappo.actor(mappo.norm.obs(steps.obs)), steps.actions, steps.action_mask
    )
    assert torch.equal(log_probs, rollout.log_probs)


@pytest.mark.parametrize("masks_actions", [False, True])
def test_agents_with_fewer_choices_never_take_the_missing_ones(masks_actions: bool) -> None:
    env = ScriptedEnv(LENGTHS, action_sizes=(2, 4), masks_actions=masks_actions)
    mappo = make_mappo(env.spec)
    rollout = collect(mappo, env, steps=100)
    taken = rollout.transitions.actions
    assert taken[..., 0].max() == 1
    assert taken[..., 1].max() == 3
    entropy = mappo.actor.entropy(torch.zeros(2, 4), None)
    assert entropy.tolist() == pytest.approx([np.log(2), np.log(4)], rel=1e-6)


def test_agents_with_fewer_dimensions_have_no_density_in_the_missing_ones() -> None:
    env = ScriptedEnv(LENGTHS, action_sizes=(1, 2), continuous=True)
    actor = make_actor(env.spec, NETWORK, generator())
    assert isinstance(actor, GaussianActor)
    parameters = torch.zeros(5, 2, 2)
    actions = actor.sample(parameters, actor.noise((5,), generator()), None)
    assert not actions[:, 0, 1].any()
    # Standard deviation e^-.5 and per dimension .5 log(2 pi e) - .5 = .9189 nats.
    assert actor.entropy(parameters, None)[0].tolist() == pytest.approx([0.9189, 1.8379], abs=1e-4)
    actions[:, 0, 1] = 50.0
    normal = torch.distributions.Normal(0.0, float(np.exp(-0.5)))
    expected = normal.log_prob(actions)
    log_probs = actor.log_prob(parameters, actions, None)
    assert torch.allclose(log_probs[:, 0], expected[:, 0, 0])
    assert torch.allclose(log_probs[:, 1], expected[:, 1].sum(dim=-1))


def test_discrete_actions_are_drawn_with_their_probabilities() -> None:
    actor, _, _ = masked_actor()
    logits = torch.tensor([0.1, 0.3, 0.6]).log().expand(20_000, 2, 3)
    drawn = actor.sample(logits, actor.noise((20_000,), generator()), None)
    shares = torch.bincount(drawn.flatten()) / 40_000
    # Standard errors below .0025.
    assert shares.tolist() == pytest.approx([0.1, 0.3, 0.6], abs=0.0125)


# Continuous actions


def test_the_environment_gets_clipped_actions_and_the_log_probability_the_unclipped() -> None:
    env = ScriptedEnv(LENGTHS, action_sizes=(2, 2), continuous=True)
    mappo = make_mappo(env.spec, network=dataclasses.replace(NETWORK, initial_log_std=0.5))
    rollout = collect(mappo, env)
    sampled, sent = rollout.transitions.actions, torch.as_tensor(np.stack(env.received))
    assert sampled.abs().max() > 1.0
    assert torch.equal(sent, sampled.clamp(-1.0, 1.0))
    means = mappo.actor(mappo.norm.obs(rollout.transitions.obs))
    normal = torch.distributions.Normal(means, float(np.exp(0.5)))
    expected = normal.log_prob(sampled).sum(dim=-1)
    assert torch.allclose(rollout.log_probs, expected, atol=1e-5)


# Axes


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
    logits = actor(torch.ones(2, 6))
    actor.zero_grad()
    logits[0].sum().backward()
    for parameter in actor.parameters():
        assert parameter.grad is not None
        assert not parameter.grad[1].any()


def test_a_row_of_a_minibatch_is_one_step_of_one_copy() -> None:
    env = ScriptedEnv(LENGTHS, agents_die=True, masks_actions=True)
    mappo = make_mappo(env.spec)
    rollout = collect(mappo, env)
    inputs = read_inputs(rollout, mappo.norm)
    rows = _flat(obs=inputs.obs, state=inputs.state, log_probs=rollout.log_probs, absent=None)
    assert {name: len(tensor) for name, tensor in rows.items()} == {
        "obs": 24, "state": 24, "log_probs": 24
    }
    # Row t * E + e: the state names the copy and the time, and so does every agent's observation.
    assert torch.equal(rows["state"][:, 0], torch.tensor([0.0, 1.0] * 12))
    assert torch.equal(rows["obs"][:, 1, :3], rows["state"])
    assert torch.equal(rows["log_probs"].view(12, 2, 2), rollout.log_probs)


# Seeds


def test_every_copy_has_a_seed_of_its_own_which_is_saved() -> None:
    def start(seed: int) -> Any:
        env = make_env("particles/nav_3", 4)
        return env, env.reset(seed).obs

    env, obs = start(5)
    assert len(np.unique(obs.reshape(4, -1), axis=0)) == 4
    np.testing.assert_array_equal(start(5)[1], obs)
    assert not np.array_equal(start(6)[1], obs)
    assert len(np.unique(env.state_dict()["seeds"])) == 4


# Gradients, losses and settings


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
            mappo.team_critic.body[-1].bias.fill_(wrong_by)
        mappo.update(rollout, random_rewards(rollout), 1.0)
        norms.append({name: gradient_norm(d.network) for name, d in mappo.descents.items()})
    limit = pytest.approx(1e-3, rel=1e-2)
    assert norms[0] == {"actor": limit, "local_critics": limit, "team_critic": limit}
    assert norms[1]["team_critic"] == limit
    assert norms[1]["actor"] == norms[0]["actor"]
    assert norms[1]["local_critics"] == norms[0]["local_critics"]


def gradient_norm(network: nn.Module) -> float:
    grads = [p.grad.flatten() for p in network.parameters() if p.grad is not None]
    return torch.cat(grads).norm().item()


def test_omega_zero_makes_the_learner_of_the_shared_reward() -> None:
    """No local critic is built, and the local rewards leave no trace, bit for bit."""
    env = ScriptedEnv(LENGTHS)
    off = dataclasses.replace(ONE_STEP, local_weight=0.0)
    mappo = make_mappo(env.spec, off)
    assert mappo.local_critics is None
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
    orders = mappo._minibatch_orders(24)
    assert [len(order) for order in orders] == [5, 5, 5, 5, 4] * 2
    for epoch in (orders[:5], orders[5:]):
        assert sorted(torch.cat(epoch).tolist()) == list(range(24))
    assert not torch.equal(torch.cat(orders[:5]), torch.cat(orders[5:]))


def test_threads_change_no_number() -> None:
    env = ScriptedEnv(LENGTHS)
    learner = LearnerConfig(epochs=3, minibatches=2)
    results = []
    for threads in (1, 2):
        mappo = Mappo(
            env.spec,
            NETWORK,
            learner,
            TeamNorm(env.spec, enabled=False),
            local_stream=True,
            threads=threads,
            generator=generator(),
            device=CPU,
        )
        rollout = collect(mappo, env)
        metrics = mappo.update(rollout, random_rewards(rollout), 1.0)
        states = [descent.network.state_dict() for descent in mappo.descents.values()]
        results.append((metrics, states))
    assert results[0][0] == results[1][0]
    for left, right in zip(results[0][1], results[1][1], strict=True):
        assert_same(left, right)


@pytest.mark.parametrize("share_parameters", [True, False])
def test_loading_continues_an_update_bit_for_bit(share_parameters: bool) -> None:
    """Optimiser moments and value statistics come back, not only the networks."""
    env = ScriptedEnv(LENGTHS)
    network = dataclasses.replace(NETWORK, share_parameters=share_parameters)
    learner = LearnerConfig(epochs=2, minibatches=2)
    mappo, other = (make_mappo(env.spec, learner, network=network) for _ in range(2))
    rollout = collect(mappo, env)
    mappo.update(rollout, random_rewards(rollout), 1.0)
    other.load_state_dict(copy.deepcopy(mappo.state_dict()))
    rewards = random_rewards(rollout)
    assert_same(
        parameters_after(mappo, rollout, rewards), parameters_after(other, rollout, rewards)
    )


def test_an_update_does_not_edit_the_rollout() -> None:
    env = ScriptedEnv(LENGTHS, agents_die=True, masks_actions=True)
    mappo = make_mappo(env.spec)
    rollout = collect(mappo, env)
    rewards = random_rewards(rollout)
    before = copy.deepcopy((rollout, rewards))
    mappo.update(rollout, rewards, 1.0)
    for left, right in zip((rollout.transitions, rewards), (before[0].transitions, before[1]), strict=True):
        for name, tensor in vars(left).items():
            assert torch.equal(tensor, getattr(right, name)), name


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


def test_the_fast_tanh_is_tanh() -> None:
    from marl.networks import Tanh

    x = torch.linspace(-8.0, 8.0, 1001, requires_grad=True)
    y = torch.linspace(-8.0, 8.0, 1001, requires_grad=True)
    fast, exact = Tanh()(x), nn.Tanh()(y)
    assert torch.allclose(fast, exact, atol=2e-7)
    fast.sum().backward()
    exact.sum().backward()
    assert torch.allclose(x.grad, y.grad, atol=1e-6)  # type: ignore[arg-type]
