"""HAPPO: one agent after the other, weighted by what those before have changed.

Axes: T time, E environments, N agents.
"""

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from marl.config import LearnerConfig, NetworkConfig
from marl.data.rollout import Collector
from marl.data.types import Rewards, Rollout
from marl.learners.happo import Happo, next_factor
from marl.learners.mappo import Mappo
from marl.learners.minibatches import chunked, unchunked
from tests.learners import (
    CPU,
    LENGTHS,
    NETWORK,
    ONE_STEP,
    RECURRENT,
    assert_same,
    changed,
    generator,
    make_mappo,
    parameters_after,
    random_rewards,
)
from tests.scripted import ScriptedEnv

OWN = NetworkConfig(hidden_sizes=(8,), share_parameters=False)
OWN_RECURRENT = dataclasses.replace(RECURRENT, share_parameters=False)
NETWORKS = pytest.mark.parametrize(
    "network", [NETWORK, OWN, RECURRENT, OWN_RECURRENT], ids=["shared", "own", "gru", "own gru"]
)
CONTINUOUS = pytest.mark.parametrize("continuous", [False, True], ids=["discrete", "continuous"])


def make_happo(
    env: ScriptedEnv, network: NetworkConfig, learner: LearnerConfig = ONE_STEP
) -> Happo:
    happo = make_mappo(env.spec, learner, kind=Happo, network=network)
    assert isinstance(happo, Happo)
    return happo


def scripted(*, continuous: bool = False, **options: Any) -> ScriptedEnv:
    """Return an environment of two agents that differ in what they see and do."""
    options |= {"continuous": continuous, "action_sizes": (2, 1) if continuous else (3, 2)}
    return ScriptedEnv(LENGTHS, **options)


def collect(happo: Mappo, env: ScriptedEnv) -> Rollout:
    """Return one rollout with the hidden states of the learner's own chunks."""
    length = happo.config.chunk_length
    collector = Collector(env, 12, seed=0, generator=generator(), device=CPU, chunk_length=length)
    return copy.deepcopy(collector.collect(happo.actor)[0])


def advantages_of(rollout: Rollout) -> Tensor:
    return torch.randn(rollout.log_probs.shape, generator=generator(5))


def run(job: Any) -> None:
    """Take all epochs of a job."""
    for _ in job:
        pass


def actor_of(learner: Mappo) -> dict[str, Tensor]:
    return copy.deepcopy(learner.actor.state_dict())


def test_the_factor_by_hand() -> None:
    # Probabilities rise from .2 to .3 and fall from .5 to .1; the third agent is not there.
    old, new = torch.tensor([[0.2, 0.5, 0.5]]).log(), torch.tensor([[0.3, 0.1, 0.9]]).log()
    factor, alive = torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[True, True, False]])
    torch.testing.assert_close(
        next_factor(factor, new, old, alive), torch.tensor([[1.5, 0.4, 4.0]])
    )
    torch.testing.assert_close(next_factor(factor, new, old, None)[0, 2], torch.tensor(7.2))


@CONTINUOUS
def test_the_second_agent_s_advantages_carry_what_the_first_has_changed(continuous: bool) -> None:
    """Agent 1 comes first; the ratios of its policy are found by `Actor.log_prob`."""
    env = scripted(continuous=continuous)
    happo = make_happo(env, OWN, LearnerConfig(epochs=2, minibatches=2, learning_rate=0.05))
    rollout = collect(happo, env)
    advantages, epochs = advantages_of(rollout), happo._minibatches(rollout)
    by_hand, whole = copy.deepcopy(happo), copy.deepcopy(happo)
    whole._order = lambda: [1, 0]  # type: ignore[method-assign]
    run(whole._improve_actor(rollout, advantages, epochs))

    run(by_hand._improve_agent(1, rollout, advantages[..., 1], epochs))
    steps = rollout.transitions
    new = by_hand.actor.log_prob(steps.obs, rollout.sampled_actions, steps.action_mask).detach()
    ratio = (new - rollout.log_probs)[..., 1].exp()
    assert (ratio - 1.0).abs().max() > 0.01
    run(by_hand._improve_agent(0, rollout, ratio * advantages[..., 0], epochs))
    for name, tensor in actor_of(by_hand).items():
        torch.testing.assert_close(actor_of(whole)[name], tensor, atol=1e-6, rtol=1e-5)


@CONTINUOUS
@pytest.mark.parametrize("network", [OWN, OWN_RECURRENT], ids=["own", "own gru"])
def test_an_agent_s_turn_moves_its_own_actor_only(network: NetworkConfig, continuous: bool) -> None:
    env = scripted(continuous=continuous)
    happo = make_happo(env, network)
    rollout = collect(happo, env)
    for agent in (0, 1, 0):
        before = actor_of(happo)
        epochs = happo._minibatches(rollout)
        run(happo._improve_agent(agent, rollout, advantages_of(rollout)[..., agent], epochs))
        moved = {
            name: (tensor != before[name]).flatten(1).any(dim=1).tolist()
            for name, tensor in actor_of(happo).items()
            if name.startswith(("body", "log_std"))
        }
        expected = [agent == 0, agent == 1]
        assert all(found in (expected, [False, False]) for found in moved.values()), moved
        assert expected in moved.values()


@NETWORKS
@CONTINUOUS
def test_log_probabilities_of_one_agent_are_those_it_acted_with(
    network: NetworkConfig, continuous: bool
) -> None:
    """Also over chunks of a rollout that is no multiple of them, and over masks."""
    env = scripted(continuous=continuous)
    happo = make_happo(env, network, LearnerConfig(chunk_length=5))
    rollout = collect(happo, env)
    for agent in range(2):
        found = happo._log_probs(agent, rollout)
        torch.testing.assert_close(found, rollout.log_probs[..., agent], atol=1e-5, rtol=1e-5)


@CONTINUOUS
def test_a_single_agent_improves_as_in_mappo(continuous: bool) -> None:
    sizes: dict[str, Any] = {"obs_sizes": (4,), "action_sizes": (2,)}
    env = ScriptedEnv(LENGTHS, continuous=continuous, **sizes)
    # The order of one agent is drawn, too, so that minibatches differ, were there more than one.
    both = [make_mappo(env.spec, ONE_STEP, kind=kind, network=OWN) for kind in (Mappo, Happo)]
    rollout = collect(both[0], env)
    rewards = random_rewards(rollout)
    found = [parameters_after(each, rollout, rewards) for each in both]
    for name, tensor in found[0].items():
        torch.testing.assert_close(found[1][name], tensor, atol=1e-6, rtol=1e-5)


@NETWORKS
def test_what_the_dead_do_changes_nothing(network: NetworkConfig) -> None:
    env = ScriptedEnv(LENGTHS, agents_die=True)
    happo = make_happo(env, network, LearnerConfig(epochs=2, minibatches=2, entropy_coef=0.1))
    rollout = collect(happo, env)
    rewards, alive = random_rewards(rollout), rollout.transitions.alive
    assert alive is not None
    assert not alive.all()
    other = dataclasses.replace(rollout, log_probs=rollout.log_probs - 3.0 * ~alive)
    assert_same(parameters_after(happo, rollout, rewards), parameters_after(happo, other, rewards))
    obs = rollout.transitions.obs + 9.0 * ~alive.unsqueeze(-1)
    if not happo.is_recurrent:  # whose hidden state goes on with what is shown of the dead
        other = changed(rollout, obs=obs)
        rewards = Rewards(team=rewards.team)
        assert_same(
            parameters_after(happo, rollout, rewards), parameters_after(happo, other, rewards)
        )


def test_orders_are_drawn_anew() -> None:
    happo = make_happo(scripted(), OWN)
    assert {tuple(happo._order()) for _ in range(20)} == {(0, 1), (1, 0)}


def test_chunks_are_put_together_again() -> None:
    x = torch.arange(7 * 2 * 3).view(7, 2, 3)
    assert torch.equal(unchunked(chunked(x, 3), torch.Size((7, 2))), x)
