"""Recurrent networks: the hidden state, its reset, and how far gradients reach.

Axes: T time, E environments, N agents, L steps of a chunk, H units of a hidden state.
"""

import copy
import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from marl.config import LearnerConfig, NetworkConfig
from marl.data.rollout import Collector
from marl.data.types import Rewards, Rollout
from marl.learners.gae import read_inputs, read_values
from marl.learners.mappo import Mappo
from marl.learners.minibatches import chunk_rows
from marl.nn.gru import AgentGRU, RecurrentBody
from tests.learners import (
    CPU,
    LENGTHS,
    ONE_STEP,
    RECURRENT,
    assert_same,
    collect,
    generator,
    make_mappo,
    parameters_after,
    random_rewards,
    team_stream,
)
from tests.scripted import ScriptedEnv

SEPARATE = dataclasses.replace(RECURRENT, share_parameters=False)
NETWORKS = pytest.mark.parametrize("network", [RECURRENT, SEPARATE], ids=["shared", "separate"])
FIVES = LearnerConfig(epochs=1, minibatches=1, chunk_length=5)


def learner(
    network: NetworkConfig = RECURRENT, config: LearnerConfig = FIVES, **options: Any
) -> tuple[Mappo, Collector]:
    """Return a learner whose outputs depend on its hidden state, and a collector of 12 steps."""
    env = ScriptedEnv(LENGTHS, **options)
    mappo = make_mappo(env.spec, config, network=network)
    with torch.no_grad():
        mappo.actor.body.after[-1].weight.mul_(100.0)  # type: ignore[index, union-attr, operator]
    length = config.chunk_length
    collector = Collector(env, 12, seed=0, generator=generator(), device=CPU, chunk_length=length)
    return mappo, collector


def rollouts(mappo: Mappo, collector: Collector, count: int = 2) -> list[Rollout]:
    return [copy.deepcopy(collector.collect(mappo.actor)[0]) for _ in range(count)]


def episodes(done: Tensor) -> Iterator[tuple[int, int, int]]:
    """Yield (copy, first, last) of every episode, also of those still open at the end."""
    for copy_ in range(done.shape[1]):
        first = 0
        for last in [*done[:, copy_].nonzero().flatten().tolist(), len(done) - 1]:
            if first <= last:
                yield copy_, first, last
            first = last + 1


def from_nothing(steps: int) -> Tensor:
    """Return the flags of one copy whose episode starts at once."""
    return torch.zeros(steps, 1, dtype=torch.bool)


def test_a_unit_by_hand() -> None:
    gru = AgentGRU(1, 1, 1, shared=True, generator=generator())
    with torch.no_grad():
        gru.weight_input.copy_(torch.tensor([0.0, 0.0, 1.0]).view(1, 3, 1))
        gru.weight_hidden.copy_(torch.tensor([0.0, 0.0, 2.0]).view(1, 3, 1))
    # Both gates are open by half. x = 1: h = tanh(1) / 2. x = 0: n = tanh(2 h / 2) and
    # h <- (n + h) / 2. Then an episode starts with x = 1: tanh(1) / 2 again.
    x = torch.tensor([1.0, 0.0, 1.0]).view(3, 1, 1, 1)
    starts = torch.tensor([[False], [False], [True]])
    hidden_states = gru(x, torch.zeros(1, 1, 1), starts).flatten().tolist()
    first = math.tanh(1.0) / 2.0
    assert hidden_states == pytest.approx([first, (math.tanh(first) + first) / 2.0, first])


@pytest.mark.parametrize("shared", [True, False])
def test_every_agent_s_hidden_state_holds_what_it_saw_itself(shared: bool) -> None:
    gru = AgentGRU(3, 2, 4, shared=shared, generator=generator())
    x = torch.randn(5, 7, 3, 2, generator=generator(1))
    start = torch.zeros(7, 3, 4), torch.zeros(5, 7, dtype=torch.bool)
    before, moved = gru(x, *start), x.clone()
    moved[0, :, 1] += 1.0
    after = gru(moved, *start)
    assert not torch.isclose(before[:, :, 1], after[:, :, 1]).all(dim=-1).any()
    assert torch.equal(before[:, :, [0, 2]], after[:, :, [0, 2]])
    same = gru(x[:, :, :1].expand(x.shape), *start)
    assert torch.equal(same[:, :, 0], same[:, :, 2]) == shared


@pytest.mark.parametrize(("sizes", "size"), [((6,), 6), ((6, 5), 5), ((6, 5, 7, 3), 5)])
def test_the_second_hidden_layer_is_recurrent(sizes: tuple[int, ...], size: int) -> None:
    body = RecurrentBody(2, 4, sizes, 3, shared=True, output_gain=1.0, generator=generator())
    start = torch.zeros(1, 2, size), torch.zeros(5, 1, dtype=torch.bool)
    outputs, hidden_states = body(torch.randn(5, 1, 2, 4, generator=generator()), *start)
    assert body.hidden_shape == (2, size)
    assert outputs.shape == (5, 1, 2, 3)
    assert hidden_states.shape == (5, 1, 2, size)


@NETWORKS
def test_an_episode_is_acted_as_if_it_were_the_first(network: NetworkConfig) -> None:
    """Recorded log-probabilities are those of every episode read by itself, across rollouts."""
    mappo, collector = learner(network)
    both = rollouts(mappo, collector)
    done = torch.cat([rollout.done for rollout in both])
    obs = torch.cat([rollout.transitions.obs for rollout in both])
    actions = torch.cat([rollout.transitions.actions for rollout in both])
    recorded = torch.cat([rollout.log_probs for rollout in both])
    spans = list(episodes(done))
    assert any(first < 12 <= last for _, first, last in spans)
    for copy_, first, last in spans:
        span = slice(first, last + 1)
        start = torch.zeros(1, 2, 8), from_nothing(last + 1 - first)
        parameters, _ = mappo.actor.unroll(mappo.norm.obs(obs[span, copy_, None]), *start)
        expected = mappo.actor.distribution(parameters).log_prob(actions[span, copy_, None])
        assert torch.allclose(recorded[span, copy_], expected[:, 0], atol=1e-5)
    always = torch.ones(24, 2, dtype=torch.bool)
    without, _ = mappo.actor.unroll(mappo.norm.obs(obs), torch.zeros(2, 2, 8), always)
    forgetful = mappo.actor.distribution(without).log_prob(actions)
    assert (forgetful - recorded).abs().max() > 1e-2


@NETWORKS
def test_the_ratio_starts_at_one_in_every_chunk(network: NetworkConfig) -> None:
    mappo, collector = learner(network)
    for rollout in rollouts(mappo, collector):
        steps = rollout.transitions
        assert rollout.hidden is not None
        rows = chunk_rows(
            rollout.hidden,
            rollout.starts,
            5,
            present=torch.ones_like(rollout.log_probs, dtype=torch.bool),
            obs=mappo.norm.obs(steps.obs),
            actions=steps.actions,
            log_probs=rollout.log_probs,
        )
        batch = rows.take(torch.tensor([5, 0, 3, 2, 1, 4]))
        parameters, _ = mappo.actor.unroll(batch["obs"], batch["hidden"], batch["starts"])
        found = mappo.actor.distribution(parameters).log_prob(batch["actions"])
        present = batch["present"]
        assert int(present.sum()) == rollout.log_probs.numel()  # 3 chunks of 5 hold 12 steps
        assert torch.allclose(found[present], batch["log_probs"][present], atol=1e-5)


def test_a_gradient_stays_in_its_chunk_and_its_episode() -> None:
    mappo, collector = learner()
    rollout = rollouts(mappo, collector, 1)[0]
    obs = mappo.norm.obs(rollout.transitions.obs).requires_grad_()
    assert rollout.hidden is not None
    rows = chunk_rows(rollout.hidden, rollout.starts, 5, present=None, obs=obs)
    batch = rows.take(torch.arange(6))
    outputs, _ = mappo.actor.unroll(batch["obs"], batch["hidden"], batch["starts"])
    # Rows 2 and 3 are steps 5 to 9 of environments 0 and 1; look back from step 9 of each.
    (grad,) = torch.autograd.grad(outputs[4, 2:4].square().sum(), obs)
    reached = grad.flatten(2).abs().sum(dim=-1) > 0.0
    # Copy 0 starts episodes at 3, 8 and 11, copy 1 at 4 and 6.
    assert reached[:, 0].nonzero().flatten().tolist() == [8, 9]
    assert reached[:, 1].nonzero().flatten().tolist() == [6, 7, 8, 9]


@NETWORKS
@pytest.mark.parametrize("kind", ["team", "local"])
def test_critics_value_an_episode_as_if_nothing_had_been_before(
    network: NetworkConfig, kind: str
) -> None:
    """Also where it ends: what the last step led to is read with that episode's hidden state."""
    mappo, collector = learner(network)
    critic = mappo.critics[kind]
    first, second = rollouts(mappo, collector)
    mappo.advance(first)
    inputs = read_inputs(second, mappo.norm)
    hidden = mappo.hidden[kind]
    assert hidden is not None
    read = read_values(critic, inputs, second, hidden, 5)
    both = [read_inputs(first, mappo.norm), inputs]
    obs, state = (torch.cat([getattr(part, name) for part in both]) for name in ("obs", "state"))
    ends = {row: index for index, row in enumerate(inputs.ends.tolist())}
    for copy_, start, last in episodes(torch.cat((first.done, second.done))):
        if last < 12:
            continue
        end = ends.pop((last - 12) * 2 + copy_)
        seen = torch.cat((obs[start : last + 1, copy_], inputs.end_obs[end, None]))
        told = torch.cat((state[start : last + 1, copy_], inputs.end_state[end, None]))
        zero, no_starts = torch.zeros(1, *hidden.shape[1:]), from_nothing(len(seen))
        expected = critic.unroll(seen.unsqueeze(1), told.unsqueeze(1), zero, no_starts)[0][:, 0]
        inside = slice(max(start, 12), last + 1)
        found = read.steps[inside.start - 12 : last + 1 - 12, copy_]
        assert torch.allclose(found, expected[inside.start - start : -1], atol=1e-5)
        assert torch.allclose(read.ends[end], expected[-1], atol=1e-5)
    assert not ends


@NETWORKS
@pytest.mark.parametrize("steps", [10, 11, 12])
def test_chunks_of_a_critic_begin_where_those_before_ended(
    network: NetworkConfig, steps: int
) -> None:
    """Read chunk by chunk, the values are those of the whole rollout."""
    env = ScriptedEnv(LENGTHS)
    mappo = make_mappo(env.spec, FIVES, network=network)
    collector = Collector(env, steps, seed=0, generator=generator(), device=CPU, chunk_length=5)
    rollout = rollouts(mappo, collector, 1)[0]
    critic, hidden = mappo.critics["local"], torch.randn(2, 2, 8, generator=generator())
    inputs = read_inputs(rollout, mappo.norm)
    read = read_values(critic, inputs, rollout, hidden, 5)
    assert read.chunk_hidden is not None
    rows = chunk_rows(
        read.chunk_hidden,
        rollout.starts,
        5,
        present=torch.ones_like(read.steps, dtype=torch.bool),
        obs=inputs.obs,
        state=inputs.state,
        values=read.steps,
    )
    batch = rows.take(torch.arange(2 * len(read.chunk_hidden)))
    found, _ = critic.unroll(batch["obs"], batch["state"], batch["hidden"], batch["starts"])
    present = batch["present"]
    assert int(present.sum()) == read.steps.numel()
    assert torch.allclose(found[present], batch["values"][present], atol=1e-6)


def test_an_update_carries_the_critics_hidden_state_as_advancing_does() -> None:
    mappo, collector = learner()
    rollout = rollouts(mappo, collector, 1)[0]
    advanced = copy.deepcopy(mappo)
    advanced.advance(rollout)
    mappo.update(rollout, random_rewards(rollout), 1.0)
    for name, hidden in mappo.hidden.items():
        expected = advanced.hidden[name]
        assert hidden is not None
        assert expected is not None
        assert torch.equal(hidden, expected)
        assert hidden.abs().sum() > 0.0


def test_steps_that_fill_up_a_chunk_do_not_count() -> None:
    # 12 steps in chunks of 5: the loss is the mean over 24 rows, not over 30.
    mappo, collector = learner()
    rollout = rollouts(mappo, collector, 1)[0]
    rewards = Rewards(team=10.0 + random_rewards(rollout).team)
    before = copy.deepcopy(mappo)
    metrics = mappo.update(rollout, rewards, 1.0)
    inputs = read_inputs(rollout, before.norm)
    values = read_values(before.critics["team"], inputs, rollout, before.hidden["team"], 5).steps
    targets = team_stream(before, rollout, rewards).targets
    expected = 0.5 * (values - targets).square().mean()
    assert metrics["value/loss_team"] == pytest.approx(expected.item(), rel=1e-4)
    assert metrics["policy/kl"] == pytest.approx(0.0, abs=1e-7)


@NETWORKS
def test_the_dead_do_not_count(network: NetworkConfig) -> None:
    mappo, collector = learner(network, agents_die=True)
    rollout = rollouts(mappo, collector, 1)[0]
    rewards = random_rewards(rollout)
    alive = rollout.transitions.alive
    assert alive is not None
    assert rewards.local is not None
    assert not alive.all()
    other = Rewards(team=rewards.team, local=rewards.local.where(alive, torch.tensor(99.0)))
    assert_same(parameters_after(mappo, rollout, rewards), parameters_after(mappo, rollout, other))


def test_a_collector_continues_with_its_hidden_state() -> None:
    mappo, collector = learner()
    collector.collect(mappo.actor)
    saved = copy.deepcopy(collector.state_dict())
    expected = copy.deepcopy(collector.collect(mappo.actor)[0])
    other, again = learner()
    again.load_state_dict(saved)
    again.generator.set_state(generator().get_state())
    other.actor.noise((12, 2), again.generator)  # what the first rollout drew
    found = again.collect(other.actor)[0]
    assert torch.equal(found.log_probs, expected.log_probs)
    assert found.hidden is not None
    assert expected.hidden is not None
    assert torch.equal(found.hidden, expected.hidden)
    assert found.hidden[0].abs().sum() > 0.0


def test_a_greedy_actor_is_recurrent_too() -> None:
    mappo, collector = learner()
    actions = collector.collect(mappo.actor, greedy=True)[0]
    steps = actions.transitions
    obs = mappo.norm.obs(steps.obs)
    parameters, _ = mappo.actor.unroll(obs, torch.zeros(2, 2, 8), actions.starts)
    assert torch.equal(steps.actions, parameters.argmax(dim=-1))


def test_feed_forward_networks_keep_no_hidden_state() -> None:
    env = ScriptedEnv(LENGTHS)
    mappo = make_mappo(env.spec, ONE_STEP)
    rollout = collect(mappo, env)
    assert rollout.hidden is None
    assert set(mappo.state_dict()["hidden"].values()) == {None}
