"""Reward models of whole episodes: which steps they read as one, and what must not matter to them.

Axes: T time, E environments, M episodes, L steps, N agents.
"""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from envs import EnvSpec
from marl.config import ConfigError, RewardConfig
from marl.config.schema import SequenceConfig
from marl.data.types import FinishedEpisodes, History, KnownReturns, Rewards, Transitions
from marl.nn.attention import ShapleyAttention
from marl.nn.normalisation import TeamNorm
from marl.rewards import sequence
from marl.rewards.arel import ArelReward
from marl.rewards.rudder import RudderReward
from marl.rewards.sequence import SequenceReward, Sequences, pieces
from marl.rewards.stas import StasReward
from marl.rewards.tar2 import Tar2Reward
from tests.reward_models import generator, make_model, make_spec, make_steps

T, E = 7, 2
DONE = torch.zeros(2 * T, E, dtype=torch.bool)
for _time, _env in ((2, 0), (9, 0), (4, 1), (5, 1)):
    DONE[_time, _env] = True
"""Two rollouts; the episodes of both environments span them."""

CAUSAL = [RudderReward, ArelReward, StasReward]
"""Models whose rewards do not depend on what comes later."""


def of_kinds(*kinds: type[SequenceReward]) -> Any:
    return pytest.mark.parametrize("kind", kinds, ids=lambda kind: kind.__name__)


def read(model: Any, steps: Transitions) -> Rewards:
    """Return the rewards of whole episodes; coalitions are the same each time."""
    same_coalitions(model)
    return model(steps)


def same_coalitions(model: Any) -> None:
    for module in model.modules():
        if isinstance(module, ShapleyAttention):
            module.generator.manual_seed(0)


def cut(steps: Transitions, *index: Any) -> Transitions:
    """Return some of the steps."""
    return Transitions(**{k: None if v is None else v[index] for k, v in vars(steps).items()})


def whole(steps: Transitions, lengths: list[int]) -> Transitions:
    """Return steps (M, L) as those of whole episodes."""
    offsets = torch.arange(steps.terminated.shape[1]).expand(steps.terminated.shape)
    present = offsets < torch.tensor(lengths).unsqueeze(-1)
    return dataclasses.replace(
        steps, history=History(starts=offsets == 0, time_axis=1, present=present)
    )


def outputs(rewards: Rewards) -> Tensor:
    """Return team and local rewards side by side, (*L, 1 + N)."""
    team = rewards.team.unsqueeze(-1)
    return team if rewards.local is None else torch.cat((team, rewards.local), dim=-1)


def test_pieces_by_hand() -> None:
    # The first environment's episode runs since 3 steps and ends with step 1; the next goes on.
    # The second one's begins with the rollout and ends with its last step.
    done = torch.tensor([[False, False], [True, False], [False, True]])
    begin, end, envs = pieces(done, torch.tensor([3, 0]))
    assert begin.tolist() == [-3, 2, 0]
    assert end.tolist() == [2, 3, 3]
    assert envs.tolist() == [0, 0, 1]


@of_kinds(*CAUSAL)
def test_a_step_is_rewarded_as_in_training_wherever_rollouts_cut_an_episode(
    kind: type[SequenceReward],
) -> None:
    model = make_model(kind, 0.0)
    steps = make_steps(0, 2 * T, E, dies=True)
    past, parts = None, []
    for span in (slice(0, T), slice(T, 2 * T)):
        same_coalitions(model)
        rewards, past = model.read_rollout(cut(steps, span), DONE[span], past)
        parts.append(outputs(rewards))
    found = torch.cat(parts)
    assert past is not None
    assert past["length"].tolist() == [4, 8]
    assert past["obs"].shape[:2] == (8, E)
    for env in range(E):
        first = 0
        for last in [*DONE[:, env].nonzero().flatten().tolist(), 2 * T - 1]:
            alone = cut(steps, slice(first, last + 1), slice(env, env + 1))
            turned = {k: None if v is None else v.movedim(0, 1) for k, v in vars(alone).items()}
            expected = outputs(read(model, whole(Transitions(**turned), [last + 1 - first])))
            part = found[first : last + 1, env]
            torch.testing.assert_close(part, expected[0], atol=1e-5, rtol=1e-5)
            first = last + 1


@of_kinds(*CAUSAL)
def test_a_reward_depends_on_the_past_of_its_own_episode_only(kind: type[SequenceReward]) -> None:
    model, steps = make_model(kind, 0.0), make_steps(0, 2, 6)
    before = outputs(read(model, whole(steps, [6, 6])))
    obs = steps.obs.clone()
    obs[0, 2] += 1.0
    moved = before != outputs(read(model, whole(dataclasses.replace(steps, obs=obs), [6, 6])))
    assert moved.any(dim=-1).tolist() == [[False, False, True, True, True, True], [False] * 6]


@of_kinds(*CAUSAL, Tar2Reward)
def test_what_follows_an_episode_changes_nothing(kind: type[SequenceReward]) -> None:
    model, steps = make_model(kind, 0.0), make_steps(0, 2, 6)
    before = outputs(read(model, whole(steps, [3, 6])))
    obs = steps.obs.clone()
    obs[0, 3:] += 1.0
    after = outputs(read(model, whole(dataclasses.replace(steps, obs=obs), [3, 6])))
    assert torch.equal(before[0, :3], after[0, :3])
    assert torch.equal(before[1], after[1])


@of_kinds(*CAUSAL, Tar2Reward)
def test_the_dead_change_nothing_and_get_nothing(kind: type[SequenceReward]) -> None:
    model, steps = make_model(kind, 0.0), make_steps(0, 3, 6, dies=True)
    assert steps.alive is not None
    dead = ~steps.alive
    other = dataclasses.replace(
        steps,
        obs=steps.obs + 9.0 * dead.unsqueeze(-1),
        actions=torch.where(dead, 1 - steps.actions, steps.actions),
    )
    before, after = (read(model, whole(each, [6, 4, 6])) for each in (steps, other))
    assert torch.equal(outputs(before), outputs(after))
    if before.local is not None:
        assert not before.local[dead].any()


@of_kinds(*CAUSAL, Tar2Reward)
def test_too_long_episodes_are_one_line(kind: type[SequenceReward]) -> None:
    long = dataclasses.replace(make_spec(), max_steps=kind.longest + 1)
    with pytest.raises(ConfigError, match=r"reward\.model: .* reads whole episodes, of at most"):
        build(kind, long)


def build(kind: Any, spec: EnvSpec) -> SequenceReward:
    norm = TeamNorm(spec, enabled=False)
    return kind(spec, RewardConfig(hidden_sizes=(8,)), 0.0, norm, generator())


@of_kinds(*CAUSAL, Tar2Reward)
def test_single_steps_are_refused(kind: type[SequenceReward]) -> None:
    with pytest.raises(ValueError, match="without the history of whole episodes"):
        make_model(kind, 0.0)(make_steps(0, 2, 6))


def test_a_batch_that_does_not_fit_into_memory_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    # 340 bytes times 32 episodes, 10 steps, 3 agents, 8 units and 3 layers.
    monkeypatch.setattr(sequence, "available_bytes", lambda: 340 * 32 * 10 * 3 * 8 * 3 - 1)
    with pytest.raises(
        ConfigError, match=r"reward\.batch_episodes: got 32; .* needs about 8 MB, but"
    ):
        make_model(StasReward, 0.0)
    make_model(StasReward, 0.0, batch_episodes=31)


def test_the_width_of_attention_is_divided_among_its_heads() -> None:
    with pytest.raises(ConfigError, match=r"the first, 8, .* of reward\.sequence\.heads = 3"):
        make_model(ArelReward, 0.0, sequence=SequenceConfig(heads=3))


def test_predictions_by_hand() -> None:
    """Two episodes; the second is known from its second step on, and misses its return by 1."""
    model = make_model(RudderReward, 0.0)
    assert model.unit == 1.0  # alpha 10, T_max 10
    team = torch.tensor([[1.0, -2.0, 4.0], [0.0, 5.0, 70.0]])
    present = torch.tensor([[True, True, True], [True, True, False]])
    episodes = dataclasses.replace(sequences(2, 3), present=present)
    # 3 + (6 - 3), one more for each of three steps; 5 + (6 - 5), a half for each of two.
    paid = model.paid(Rewards(team=team), episodes, torch.tensor([6.0, 6.0]), 0.0).team
    assert paid[0].tolist() == [2.0, -1.0, 5.0]
    assert paid[1, :2].tolist() == [0.5, 5.5]
    # Of an episode that goes on nothing is known yet.
    paid = model.paid(Rewards(team=team), episodes, torch.tensor([torch.nan, 6.0]), 0.0).team
    assert torch.equal(paid[0], team[0])


def sequences(*lead: int) -> Sequences:
    steps = make_steps(0, *lead)
    present = torch.ones(lead, dtype=torch.bool)
    return Sequences(obs=steps.obs, actions=steps.actions, alive=None, present=present)


def test_a_rollout_pays_the_returns_of_the_episodes_that_ended() -> None:
    model, steps = make_model(RudderReward, 0.0), make_steps(0, T, E)
    finished = FinishedEpisodes(
        end_time=torch.tensor([2, 4, 5]),
        env=torch.tensor([0, 1, 1]),
        lengths=torch.tensor([3, 5, 1]),
        returns=torch.tensor([8.0, -2.0, 4.0]),
        terminated=torch.ones(3, dtype=torch.bool),
    )
    known = KnownReturns(least=-2.0, deviation=2.0)
    team = model.read_rollout(steps, DONE[:T], None, finished, known)[0].team
    sums = [team[:3, 0].sum(), team[:5, 1].sum(), team[5, 1]]
    torch.testing.assert_close(torch.stack(sums), torch.tensor([4.0, -1.0, 2.0]))
