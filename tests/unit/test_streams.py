"""Truncation, bootstrapping and the scale of values.

Axes: T time, E environments, N agents.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from marl.config import LearnerConfig
from marl.data.types import Rewards, Rollout
from marl.learners.gae import read_inputs
from marl.learners.losses import clipped_value_loss
from marl.nn.normalisation import ValueNorm
from tests.learners import (
    LENGTHS,
    changed,
    collect,
    local_stream,
    make_mappo,
    random_rewards,
    team_stream,
    with_unit_values,
)
from tests.scripted import ScriptedEnv


def test_a_truncation_bootstraps_with_the_value_of_the_real_final_state() -> None:
    mappo = with_unit_values(make_mappo(ScriptedEnv(LENGTHS).spec))
    rollout = collect(mappo, ScriptedEnv(LENGTHS))
    rewards, steps = random_rewards(rollout), rollout.transitions
    where = rollout.truncated.nonzero()[0].tolist()
    stream = team_stream(mappo, rollout, rewards)
    with torch.no_grad():
        final = mappo.critics["team"](mappo.norm.obs(steps.next_obs), steps.next_state)
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
    mappo = with_unit_values(make_mappo(ScriptedEnv(LENGTHS).spec))
    rollout = collect(mappo, ScriptedEnv(LENGTHS))
    rewards, steps = random_rewards(rollout), rollout.transitions
    stream = team_stream(mappo, rollout, rewards)
    t, copy_ = steps.terminated.nonzero()[0].tolist()
    delta = rewards.team[t, copy_] - stream.values[t, copy_]
    assert stream.advantages[t, copy_].item() == pytest.approx(delta.item(), abs=1e-5)


def test_the_reset_state_is_worth_nothing_to_the_episode_before_it() -> None:
    mappo = with_unit_values(make_mappo(ScriptedEnv(LENGTHS).spec))
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
        sampled_actions=rollout.sampled_actions[:6],
        log_probs=rollout.log_probs[:6],
        task_rewards=rollout.task_rewards[:6],
        elapsed=rollout.elapsed[:6],
        episodes=rollout.episodes,
    )
    assert rewards.local is not None
    part = stream(mappo, half, Rewards(team=rewards.team[:6], local=rewards.local[:6])).advantages
    assert torch.allclose(part, whole[:6], atol=1e-6)


def test_the_rows_that_end_are_those_of_episodes_and_the_last_ones() -> None:
    # 12 steps of two environments, row 2 t + e. Episodes of 5 end in steps 4 and 9, one of 7 in
    # step 6; both environments are cut off after step 11.
    env = ScriptedEnv([[5], [7]])
    mappo = make_mappo(env.spec)
    rollout = collect(mappo, env)
    inputs = read_inputs(rollout, mappo.norm)
    assert inputs.ends.tolist() == [8, 13, 18, 22, 23]
    steps = rollout.transitions
    assert inputs.end_state[:, 2].tolist() == [5, 7, 5, 2, 5]
    assert torch.equal(inputs.end_obs[-1], steps.next_obs[-1, 1])


def test_values_are_denormalised_before_gae() -> None:
    mappo = make_mappo(ScriptedEnv(LENGTHS).spec)
    rollout = collect(mappo, ScriptedEnv(LENGTHS))
    rewards = random_rewards(rollout)
    mappo.critics["team"].value_norm.update(torch.tensor([90.0, 110.0]))  # mean 100, deviation 10
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
    explained = 1.0 - stream.advantages.var() / targets.var()
    assert stream.explained_variance.item() == pytest.approx(explained.item(), rel=1e-4)


def test_value_statistics_are_updated_once_per_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    mappo = make_mappo(ScriptedEnv(LENGTHS).spec, LearnerConfig(epochs=3, minibatches=4))
    calls: list[int] = []
    update = ValueNorm.update

    def counted(self: ValueNorm, targets: Tensor, *others: Any) -> None:
        calls.append(targets.numel())
        update(self, targets, *others)

    monkeypatch.setattr(ValueNorm, "update", counted)
    rollout = collect(mappo, ScriptedEnv(LENGTHS))
    mappo.update(rollout, random_rewards(rollout), 1.0)
    assert calls == [24, 48]  # 12 steps of 2 environments; times 2 agents


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
        outputs = mappo.critics["team"](
            mappo.norm.obs(rollout.transitions.obs), rollout.transitions.state
        )
    assert torch.equal(stream.values, outputs)
    assert stream.targets.abs().max() < 10.0
    assert stream.advantages.abs().max() > 1e4
