"""What agents that are absent earn, and what becomes of their streams.

Axes: T time, E environments, N agents.
"""

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from marl.config import LearnerConfig
from marl.config.schema import Absence
from marl.data.types import Rewards, Rollout
from marl.learners.gae import with_absent
from marl.learners.mappo import Mappo
from tests.learners import (
    LENGTHS,
    RECURRENT,
    assert_same,
    changed,
    collect,
    generator,
    local_stream,
    make_mappo,
    parameters_after,
    random_rewards,
)
from tests.scripted import ScriptedEnv

GOING_ON: list[Absence] = ["alive_mean", "team_share", "centred"]
"""The rules by which a stream ends with the episode only."""
UNMOVED: list[Absence] = ["alive_mean", "centred"]
"""The rules by which a constant makes absence neither better nor worse."""


def make(absence: Absence, steps: int, **options: Any) -> tuple[Mappo, Rollout]:
    """Return a learner whose local critics say 0, and a rollout of one episode of two agents."""
    env = ScriptedEnv([[steps]], agents_die=True)
    mappo = make_mappo(env.spec, LearnerConfig(absence=absence, **options))
    assert "local" in mappo.critics
    for parameter in mappo.critics["local"].parameters():
        parameter.data.zero_()
    return mappo, collect(mappo, env, steps=steps)


def with_presence(rollout: Rollout, alive: Tensor) -> Rollout:
    """Return a rollout in which these agents are there; the last row repeats."""
    return changed(rollout, alive=alive, next_alive=torch.cat((alive[1:], alive[-1:])))


@pytest.mark.parametrize(
    ("absence", "expected"),
    [
        ("ends", [[1.0, 0.0, 9.0], [0.0, 8.0, 0.0]]),
        # (1 + 9) / 2 and 8 / 1; (1 + 9) / 3 and 8 / 3; centred: 1 - 5 + 10 / 3, 9 - 5 + 10 / 3.
        ("alive_mean", [[1.0, 5.0, 9.0], [8.0, 8.0, 8.0]]),
        ("team_share", [[1.0, 10 / 3, 9.0], [8 / 3, 8.0, 8 / 3]]),
        ("centred", [[-2 / 3, 10 / 3, 22 / 3], [8 / 3, 8 / 3, 8 / 3]]),
    ],
)
def test_what_the_absent_earn_by_hand(absence: Absence, expected: list[list[float]]) -> None:
    reward = torch.tensor([[[1.0, 1e3, 9.0], [1e3, 8.0, 1e3]]])
    present = torch.tensor([[[True, False, True], [False, True, False]]])
    found = with_absent(reward, present, absence)[0]
    assert torch.allclose(found, torch.tensor(expected))


@pytest.mark.parametrize("absence", GOING_ON)
def test_where_nobody_is_there_nothing_is_earned(absence: Absence) -> None:
    nobody = torch.zeros(2, 1, 3, dtype=torch.bool)
    assert not with_absent(torch.ones(2, 1, 3), nobody, absence).any()


@pytest.mark.parametrize("absence", UNMOVED)
@settings(deadline=None)
@given(
    constant=st.floats(-10.0, 10.0),
    presence=st.lists(st.booleans(), min_size=8, max_size=8),
    seed=st.integers(0, 2**31 - 1),
)
def test_a_constant_makes_absence_neither_better_nor_worse(
    absence: Absence, constant: float, presence: list[bool], seed: int
) -> None:
    """Whenever agent 0 leaves or returns, it gains what agent 1 gains, who is always there."""
    mappo, rollout = make(absence, 8)
    alive = torch.tensor([[[here, True]] for here in presence])
    rollout = with_presence(rollout, alive)
    local = torch.randn(8, 1, 2, generator=generator(seed))
    plain, more = (
        local_stream(mappo, rollout, Rewards(team=reward[..., 0], local=reward)).advantages
        for reward in (local, local + constant)
    )
    gained = (more - plain)[:, 0]
    assert torch.allclose(gained[:, 0], gained[:, 1], atol=1e-4)


@given(
    constant=st.floats(-10.0, 10.0),
    presence=st.lists(st.booleans(), min_size=12, max_size=12),
    seed=st.integers(0, 2**31 - 1),
)
def test_centred_rewards_add_up_to_the_teams_and_share_its_constant_alike(
    constant: float, presence: list[bool], seed: int
) -> None:
    """The complete form shares a constant of R among the living; nobody profits by a death."""
    present = torch.tensor(presence).view(3, 2, 2)
    reward = torch.randn(3, 2, 2, generator=generator(seed))
    found = with_absent(reward, present, "centred")
    assert torch.allclose(found.sum(dim=-1), (reward * present).sum(dim=-1), atol=1e-5)
    count = present.sum(dim=-1, keepdim=True)
    more = with_absent(reward + constant / count.clamp(min=1), present, "centred") - found
    expected = torch.full_like(more, constant / 2) * (count > 0)
    assert torch.allclose(more, expected, atol=1e-5)


@pytest.mark.parametrize(("absence", "loses"), [("ends", 5.0), ("team_share", 2.5)])
def test_a_constant_makes_death_worse_by_the_other_rules(absence: Absence, loses: float) -> None:
    """Agent 0 dies behind step 0 of 6; undiscounted it loses 5 steps of 1, or 5 of 1 - 1 / 2."""
    mappo, rollout = make(absence, 6, gamma=1.0, gae_lambda=1.0)
    alive = torch.ones(6, 1, 2, dtype=torch.bool)
    alive[1:, 0, 0] = False
    rollout = with_presence(rollout, alive)
    ones = torch.ones(6, 1, 2)
    found = local_stream(mappo, rollout, Rewards(team=ones[..., 0], local=ones)).advantages[0, 0]
    assert (found[1] - found[0]).item() == pytest.approx(loses)


@pytest.mark.parametrize("absence", GOING_ON)
@pytest.mark.parametrize("network", [None, RECURRENT], ids=["plain", "gru"])
@pytest.mark.parametrize("can_die", [True, False])
def test_without_deaths_nothing_depends_on_the_rule(
    absence: Absence, network: Any, can_die: bool
) -> None:
    """Bit for bit, in a task in which agents could die and in one in which they cannot."""
    after = []
    for rule in ("ends", absence):
        env = ScriptedEnv(LENGTHS, agents_die=can_die)
        learner = LearnerConfig(epochs=2, minibatches=2, absence=rule)
        mappo = make_mappo(env.spec, learner, **({} if network is None else {"network": network}))
        rollout = collect(mappo, env)
        if can_die:
            there = torch.ones_like(rollout.log_probs, dtype=torch.bool)
            rollout = changed(rollout, alive=there, next_alive=there)
        after.append(parameters_after(mappo, rollout, random_rewards(rollout)))
    assert_same(*after)


@pytest.mark.parametrize(
    ("absence", "expected"),
    [
        # There, absent, there; undiscounted, V = 0, r_0 = 1, -, 4 and r_1 = 2, 3, 6: what agent 0
        # earns in its absence is 3, or 3 / 2, which centred leaves agent 1 too.
        ("alive_mean", [1.0 + 3.0 + 4.0, 2.0 + 3.0 + 6.0]),
        ("team_share", [1.0 + 1.5 + 4.0, 2.0 + 3.0 + 6.0]),
        ("centred", [1.0 + 1.5 + 4.0, 2.0 + 1.5 + 6.0]),
        ("ends", [1.0, 2.0 + 3.0 + 6.0]),
    ],
)
def test_who_returns_is_credited_with_what_follows(absence: Absence, expected: list[float]) -> None:
    mappo, rollout = make(absence, 3, gamma=1.0, gae_lambda=1.0)
    rollout = with_presence(
        rollout, torch.tensor([[[True, True]], [[False, True]], [[True, True]]])
    )
    local = torch.tensor([[[1.0, 2.0]], [[1e3, 3.0]], [[4.0, 6.0]]])
    found = local_stream(mappo, rollout, Rewards(team=local[..., 1], local=local)).advantages
    assert found[0, 0].tolist() == pytest.approx(expected)
    assert found[2, 0].tolist() == pytest.approx([4.0, 6.0])


@pytest.mark.parametrize("absence", GOING_ON)
def test_local_critics_learn_what_absence_is_worth(absence: Absence) -> None:
    """Rows of the absent count in the critics' loss, and what is earned there moves them."""
    env = ScriptedEnv([[8]], agents_die=True)
    learner = LearnerConfig(epochs=1, minibatches=1, absence=absence, local_weight=1.0)
    mappo = make_mappo(env.spec, learner)
    rollout = collect(mappo, env, steps=8)
    assert rollout.transitions.alive is not None
    mappo.update(rollout, random_rewards(rollout), 1.0)
    critic = mappo.critics["local"]
    assert critic is not None
    stream = local_stream(make_mappo(env.spec, learner), rollout, random_rewards(rollout))
    # Before the first targets all values are 0, so the advantages are the targets.
    expected = stream.advantages
    assert critic.value_norm.mean.item() == pytest.approx(expected.mean().item(), abs=1e-5)


def test_an_interrupted_episode_leaves_the_dead_a_future_unless_they_end() -> None:
    """Where streams go on, the value of the final state counts for the dead as for the living."""
    env = ScriptedEnv([[2]], agents_die=True, tells_final_alive=True)
    found = {}
    for absence in ("ends", "alive_mean"):
        mappo = make_mappo(env.spec, LearnerConfig(absence=absence))
        assert "local" in mappo.critics
        for parameter in mappo.critics["local"].parameters():
            parameter.data.zero_()
        mappo.critics["local"].value_norm.update(torch.tensor([0.0, 1.0]))  # 0 comes out as .5
        rollout = collect(mappo, ScriptedEnv([[2]], agents_die=True, tells_final_alive=True), 4)
        assert rollout.truncated[3, 0]
        rewards = dataclasses.replace(random_rewards(rollout), local=torch.zeros(4, 1, 2))
        found[absence] = local_stream(mappo, rollout, rewards).advantages[3, 0, 1].item()
    assert found["ends"] == pytest.approx(-0.5)
    assert found["alive_mean"] == pytest.approx(0.99 * 0.5 - 0.5)
