"""The log-ratio of two policies as a reward: by hand, under masks, deaths and hidden states.

Axes: T time, E environments, N agents, A actions.
"""

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from envs import EnvSpec
from marl.config import ConfigError, NetworkConfig, RewardConfig
from marl.config.io import load_config
from marl.data.types import History, Rewards, Rollout, Transitions
from marl.learners.actors import CategoricalActor, GaussianActor, make_actor
from marl.learners.distributions import Gaussian
from marl.nn.normalisation import TeamNorm
from marl.policy import Policy
from marl.rewards.learner import RewardLearner
from marl.rewards.ratio import (
    UNIFORM_LOG_STD,
    PolicyRatio,
    UniformPolicy,
    check_comparable,
    frozen,
    with_deviation_of,
)
from tests.learners import CPU, LENGTHS, NETWORK, RECURRENT, collect, generator, make_mappo
from tests.scripted import ScriptedEnv


class Table(nn.Module):
    """A policy whose agent i takes action a with a given probability, whatever it sees."""

    def __init__(self, probabilities: list[list[float]]) -> None:
        super().__init__()
        self.log = nn.Parameter(torch.tensor(probabilities).log())

    def log_prob(self, obs: Tensor, actions: Tensor, mask: Tensor | None = None) -> Tensor:
        rows = self.log.expand(*actions.shape, -1)
        return rows.gather(-1, actions.unsqueeze(-1)).squeeze(-1)


def transitions(actions: list[list[int]], alive: list[list[bool]] | None = None) -> Transitions:
    """Return one environment's steps, of which nothing but the actions matters."""
    taken = torch.tensor(actions).unsqueeze(1)
    steps, _, agents = taken.shape
    zeros = torch.zeros(steps, 1, agents, 2)
    return Transitions(
        obs=zeros,
        state=torch.zeros(steps, 1, 3),
        actions=taken,
        next_obs=zeros,
        next_state=torch.zeros(steps, 1, 3),
        terminated=torch.zeros(steps, 1, dtype=torch.bool),
        alive=None if alive is None else torch.tensor(alive).unsqueeze(1),
    )


def actor_of(
    env: Any, network: NetworkConfig = NETWORK, seed: int = 0
) -> CategoricalActor | GaussianActor:
    """Return a policy whose outputs are far from zero."""
    actor = make_actor(env.spec, network, TeamNorm(env.spec, enabled=False), generator(seed))
    with torch.no_grad():
        for parameter in actor.body.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator(seed)) * 0.5)
    return actor


def rolled_out(env: Any, network: NetworkConfig = NETWORK) -> Rollout:
    return collect(make_mappo(env.spec, network=network), env)


def test_local_parts_by_hand_and_their_sum() -> None:
    policy, reference = Table([[0.5, 0.5], [0.8, 0.2]]), Table([[0.25, 0.75], [0.4, 0.6]])
    steps = transitions([[0, 0], [1, 1]])
    rewards = PolicyRatio(policy, reference, beta=0.1)(steps)
    # .1 log(.5 / .25), .1 log(.8 / .4); .1 log(.5 / .75), .1 log(.2 / .6)
    expected = [[0.1 * math.log(2), 0.1 * math.log(2)], [0.1 * math.log(2 / 3), -0.1 * math.log(3)]]
    assert rewards.local is not None
    torch.testing.assert_close(rewards.local.squeeze(1), torch.tensor(expected))
    assert torch.equal(rewards.team, rewards.local.sum(dim=-1))
    assert rewards.are_advantages


def test_an_absent_agent_has_no_part_and_no_gradient() -> None:
    policy, reference = Table([[0.5, 0.5], [1.0, 0.0]]), Table([[0.25, 0.75], [1.0, 0.0]])
    # Agent 1 is absent in the first step, and its action there is impossible.
    steps = transitions([[0, 1], [0, 0]], [[True, False], [True, True]])
    rewards = PolicyRatio(policy, reference, beta=1.0)(steps)
    assert rewards.local is not None
    expected = torch.tensor([[math.log(2), 0.0], [math.log(2), 0.0]])
    torch.testing.assert_close(rewards.local.squeeze(1), expected)
    torch.testing.assert_close(rewards.team.squeeze(1), expected.sum(dim=-1))
    rewards.team.sum().backward()
    assert policy.log.grad is not None
    assert policy.log.grad.tolist() == [[2.0, 0.0], [1.0, 0.0]]


def test_a_mean_beyond_a_bound_gains_nothing_by_going_further() -> None:
    """What made the unbounded density run away: at the bound its slope is that of a certainty."""
    mean = torch.tensor([[[-40.0], [0.0], [40.0]]], requires_grad=True)
    policy = Gaussian(mean, torch.zeros(3, 1), None)
    policy.executed_log_prob(torch.ones(1, 3, 1)).sum().backward()
    assert mean.grad is not None
    behind, middle, beyond = mean.grad.flatten().tolist()
    assert behind == pytest.approx(41.0, rel=1e-2)
    # d log Phi(m - 1) / dm at m = 0: phi(1) / Phi(-1).
    assert middle == pytest.approx(0.2419707 / 0.1586553, rel=1e-5)
    assert beyond == 0.0


def test_gradients_reach_the_policy_alone() -> None:
    policy, reference = Table([[0.5, 0.5], [0.8, 0.2]]), Table([[0.25, 0.75], [0.4, 0.6]])
    PolicyRatio(policy, reference, beta=0.1)(transitions([[0, 0]])).team.sum().backward()
    assert policy.log.grad is not None
    assert reference.log.grad is None


def test_the_uniform_policy_counts_legal_actions_and_own_dimensions() -> None:
    env = ScriptedEnv(LENGTHS, masks_actions=True)
    uniform = UniformPolicy(env.spec)
    obs, actions = torch.zeros(1, 2, env.spec.obs_size), torch.zeros(1, 2, dtype=torch.int64)
    mask = torch.tensor([[[True, True, False], [True, False, False]]])
    # 2 of 3 actions are legal to agent 0, one to agent 1.
    assert uniform.log_prob(obs, actions, mask)[0].tolist() == pytest.approx([-math.log(2), 0.0])
    everything = uniform.log_prob(obs, actions)[0].exp().tolist()
    assert everything == pytest.approx([1 / size for size in env.spec.action_sizes])
    continuous = ScriptedEnv(LENGTHS, continuous=True, action_sizes=(1, 2))
    drawn = torch.tensor([[[0.0, 0.0], [1.0, -0.5]]])
    density = UniformPolicy(continuous.spec).log_prob(torch.zeros(1, 2, 4), drawn)[0]
    # Mean 0, deviation 1 / sqrt 3: a density within the bounds, at a bound all that lies beyond.
    middle = 0.5 * math.log(3.0 / (2.0 * math.pi))
    bound = math.log(0.5 * math.erfc(math.sqrt(3.0 / 2.0)))
    assert density.tolist() == pytest.approx([middle, bound + middle - 0.5 * 3.0 * 0.25])


def test_masks_reach_both_policies() -> None:
    env = ScriptedEnv(LENGTHS, masks_actions=True)
    steps = rolled_out(env).transitions
    assert steps.action_mask is not None
    actor = actor_of(env)
    rewards = PolicyRatio(actor, UniformPolicy(env.spec), beta=1.0)(steps)
    logits = actor.body(steps.obs).masked_fill(~steps.action_mask, -torch.inf)
    chosen = steps.actions.unsqueeze(-1)
    expected = logits.log_softmax(-1).gather(-1, chosen) + steps.action_mask.sum(-1, True).log()
    torch.testing.assert_close(rewards.local, expected.squeeze(-1))


def test_a_gaussian_keeps_the_deviation_of_its_reference() -> None:
    env = ScriptedEnv(LENGTHS, continuous=True)
    policy, reference = actor_of(env, seed=1), actor_of(env, seed=2)
    assert isinstance(policy, GaussianActor)
    assert isinstance(reference, GaussianActor)
    with torch.no_grad():
        reference.log_std.fill_(math.log(0.5))
    with_deviation_of(policy, reference)
    steps = rolled_out(env).transitions
    rewards = PolicyRatio(policy, reference, beta=0.1)(steps)
    # Of equal deviations s = 1 / 2: [(a - mu_ref)^2 - (a - mu)^2] / (2 s^2) within
    # the bounds; at a bound it is the log-ratio of the probabilities to be clipped there.
    actions = steps.actions
    mine, theirs = (actor.body(steps.obs) for actor in (policy, reference))
    within = 2.0 * ((actions - theirs) ** 2 - (actions - mine) ** 2)
    beyond = [torch.erfc((1.0 - actions.sign() * mean) * math.sqrt(2.0)) for mean in (mine, theirs)]
    clipped = actions.abs() == 1.0
    assert clipped.any()
    assert not clipped.all()
    expected = 0.1 * torch.where(clipped, (beyond[0] / beyond[1]).log(), within).sum(-1)
    torch.testing.assert_close(rewards.local, expected)
    rewards.team.sum().backward()
    assert policy.log_std.grad is None
    with_deviation_of(policy, UniformPolicy(env.spec))
    # The deviation of a uniform number in [-1, 1] is 1 / sqrt 3.
    assert torch.equal(policy.log_std, torch.full_like(policy.log_std, UNIFORM_LOG_STD))
    assert math.exp(UNIFORM_LOG_STD) == pytest.approx(1 / math.sqrt(3))


@pytest.mark.parametrize("axis", [0, 1])
def test_hidden_states_follow_the_episodes(axis: int) -> None:
    env = ScriptedEnv(LENGTHS)
    rollout = rolled_out(env, RECURRENT)
    actor = actor_of(env, RECURRENT)
    ratio = PolicyRatio(actor, UniformPolicy(env.spec), beta=1.0)
    assert ratio.is_recurrent
    steps, starts = rollout.transitions, rollout.starts
    if axis == 1:  # as in a batch of episodes
        fields = {f.name: getattr(steps, f.name) for f in dataclasses.fields(steps)}
        turned = {k: v.transpose(0, 1) for k, v in fields.items() if isinstance(v, Tensor)}
        steps, starts = dataclasses.replace(steps, **turned), starts.T
    steps = dataclasses.replace(steps, history=History(starts=starts, time_axis=axis))
    local = ratio(steps).local
    assert local is not None
    local = local if axis == 0 else local.transpose(0, 1)
    hidden = actor.initial_hidden(len(LENGTHS))
    assert hidden is not None
    for t in range(len(rollout.starts)):  # as the actor acts, step by step
        hidden = hidden.masked_fill(rollout.starts[t].view(-1, 1, 1), 0.0)
        outputs, hidden = actor.body.step(rollout.transitions.obs[t], hidden)
        policy = actor.distribution(outputs)
        expected = policy.log_prob(rollout.transitions.actions[t]) + math.log(3)
        torch.testing.assert_close(local[t], expected)


def test_a_recurrent_policy_needs_the_order_of_its_steps() -> None:
    env = ScriptedEnv(LENGTHS)
    steps = rolled_out(env).transitions
    with pytest.raises(ValueError, match=r"got Transitions without history"):
        PolicyRatio(actor_of(env, RECURRENT), UniformPolicy(env.spec), beta=1.0)(steps)


def test_a_recurrent_ratio_goes_on_from_rollout_to_rollout() -> None:
    """Two halves, one after the other, are worth what the whole is."""
    env = ScriptedEnv(LENGTHS)
    rollout = rolled_out(env, RECURRENT)
    ratio = PolicyRatio(actor_of(env, RECURRENT), actor_of(env, RECURRENT, seed=3), beta=1.0)
    learner = RewardLearner(ratio, "ratio", RewardConfig(), 8, threads=1, device=CPU)
    whole = learner.rewards(rollout.transitions, rollout.done).team
    learner.num_fits = 1
    halves = []
    for half in (slice(0, 6), slice(6, 12)):
        fields = {
            f.name: getattr(rollout.transitions, f.name)
            for f in dataclasses.fields(rollout.transitions)
        }
        cut = {k: v[half] for k, v in fields.items() if isinstance(v, Tensor)}
        part = dataclasses.replace(rollout.transitions, **cut)
        rewards, _ = learner.rollout_rewards(part, rollout.done[half], informed=True)
        assert rewards is not None
        assert rewards.are_advantages
        halves.append(rewards.team)
    scale = whole[:6].std(), halves[0].std()  # the running deviation differs from half to half
    torch.testing.assert_close(halves[0] / scale[1], whole[:6] / scale[0])
    ratios = halves[1] / whole[6:]
    torch.testing.assert_close(ratios, ratios[0, 0].expand_as(ratios), rtol=1e-4, atol=0)


def test_the_reference_moves_by_a_rate_or_becomes_a_copy() -> None:
    env = ScriptedEnv(LENGTHS)
    norm = TeamNorm(env.spec, enabled=True)
    policy = make_actor(env.spec, NETWORK, norm, generator(1))
    ratio = PolicyRatio(policy, frozen(policy), beta=1.0)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(1.0)
    before = [p.clone() for p in ratio.reference.parameters()]  # type: ignore[attr-defined]
    steps = rolled_out(env).transitions
    norm.update(steps)
    assert ratio(steps).team.abs().max() > 0
    ratio.move_reference(0.25)
    moved = list(ratio.reference.parameters())  # type: ignore[attr-defined]
    for old, new in zip(before, moved, strict=True):
        torch.testing.assert_close(new, old + 0.25)
    ratio.move_reference(1.0)
    assert torch.equal(ratio(steps).team, torch.zeros_like(ratio(steps).team))
    assert not any(p.requires_grad for p in moved)


def test_advantages_reach_the_actors_without_gae(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are standardised and mixed; critics neither value them nor learn from them."""
    env = ScriptedEnv(LENGTHS)
    mappo = make_mappo(env.spec)
    rollout = collect(mappo, env)
    team = torch.randn(rollout.truncated.shape, generator=generator(1))
    local = torch.randn(*team.shape, 2, generator=generator(2))
    before = {k: v.clone() for k, v in mappo.critics["team"].state_dict().items()}
    seen = []
    rows = mappo._actor_rows

    def kept(rollout: Rollout, advantages: Tensor) -> Any:
        seen.append(advantages)
        return rows(rollout, advantages)

    monkeypatch.setattr(mappo, "_actor_rows", kept)
    metrics = mappo.update(rollout, Rewards(team=team, local=local, are_advantages=True), 1.0)

    def standard(x: Tensor) -> Tensor:
        return (x - x.mean()) / x.std(correction=0)

    torch.testing.assert_close(seen[0], 0.5 * standard(local) + 0.5 * standard(team)[..., None])
    assert "policy/loss" in metrics
    assert not any(name.startswith("value/") for name in metrics)
    after = mappo.critics["team"].state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def saved_policy(spec: EnvSpec) -> Policy:
    norm = TeamNorm(spec, enabled=False)
    actor = make_actor(spec, NETWORK, norm, generator())
    return Policy(config=load_config(), spec=spec, steps=0, actor=actor, folder="runs/other")


def test_a_policy_of_another_task_is_refused_with_both_sides() -> None:
    env = ScriptedEnv(LENGTHS)
    check_comparable(saved_policy(env.spec), env.spec, "--reference")
    other = ScriptedEnv(LENGTHS, action_sizes=(3, 4))
    with pytest.raises(ConfigError) as caught:
        check_comparable(saved_policy(other.spec), env.spec, "--reference")
    assert str(caught.value) == (
        f"--reference: the policy of runs/other was trained on {other.spec.name} (actions of each: "
        f"[3, 4]), and this is {env.spec.name} (actions of each: [3, 3]); name a run of a task "
        "with equal ones"
    )
    continuous = ScriptedEnv(LENGTHS, continuous=True)
    with pytest.raises(ConfigError, match=r"kind of action: continuous.*kind of action: discrete"):
        check_comparable(saved_policy(continuous.spec), env.spec, "--reference")
