"""Rewards from demonstrations: the loss by hand, the batches, and what must be there."""

import dataclasses
from pathlib import Path

import pytest
import torch

from marl.config import ConfigError, RewardConfig
from marl.data.types import EpisodeBatch, Rewards
from marl.preferences.dataset import PreferenceDataset
from marl.rewards.base import Batches
from marl.rewards.demonstrations import DemonstrationBatches, DemonstrationLoss
from tests.learners import generator
from tests.played import at_random, name_the_cue, play_episodes
from tests.unit.test_policy_ratio import transitions


def batch(shown: list[bool], weights: list[list[float]]) -> EpisodeBatch:
    nothing = torch.zeros(0, dtype=torch.int64)
    return EpisodeBatch(
        transitions=transitions([[0, 0]]),
        step_weights=torch.tensor(weights),
        lengths=torch.tensor([2] * len(shown)),
        returns=torch.zeros(len(shown)),
        first=nothing,
        second=nothing,
        labels=torch.zeros(0),
        demonstrations=torch.tensor(shown),
    )


def test_the_loss_by_hand() -> None:
    team = torch.tensor([[2.0, 1.0], [3.0, -1.0], [4.0, 9.0]], requires_grad=True)
    given = batch([True, False, False], [[1.0, 3.0], [1.0, 1.0], [2.0, 0.0]])
    loss, metrics = DemonstrationLoss()(Rewards(team=team), given)
    # own: (3 - 1 + 2 * 4) / 4; demonstrations: R - R^2 / 4 is 1 and 3/4: (1 + 3 * 3/4) / 4
    assert loss.item() == pytest.approx(10 / 4 - 3.25 / 4)
    assert metrics["demonstrations/loss"].item() == pytest.approx(loss.item())
    loss.backward()
    assert team.grad is not None
    # 1 - R / 2 is 0 and 1/2, of weights 1/4 and 3/4
    expected = [[0.0, -0.375], [0.25, 0.25], [0.5, 0.0]]
    assert torch.allclose(team.grad, torch.tensor(expected))


def mixed(folder: Path, shown: int, own: int) -> PreferenceDataset:
    spec, demonstrations = play_episodes(
        "probe/coordination", max(shown, 1), name_the_cue, demonstration=True
    )
    _, others = play_episodes("probe/coordination", max(own, 1), at_random())
    made = PreferenceDataset.create(folder, spec)
    for record in (*demonstrations[:shown], *others[:own]):
        made.add_episode(record)
    return made


def batches_of(made: PreferenceDataset) -> DemonstrationBatches:
    archive = made.archive(holdout_every=4)
    return DemonstrationBatches(archive, RewardConfig(batch_episodes=8), generator(), "here")


def test_batches_hold_both_kinds_and_pairs_prefer_demonstrations(tmp_path: Path) -> None:
    made = mixed(tmp_path / "data", 6, 14)  # held out: 3 is one, 7, 11, 15 and 19 are not
    batches = batches_of(made)
    assert isinstance(batches, Batches)
    given = batches.batch()
    assert given is not None
    assert given.demonstrations is not None
    assert given.demonstrations.tolist() == [True] * 4 + [False] * 4
    assert (given.returns[:4] == 8.0).all()
    assert (given.returns[4:] < 8.0).all()
    held_out = batches.batch(held_out=True)
    assert held_out is not None
    assert held_out.demonstrations is not None
    assert held_out.demonstrations.tolist() == [True] + [False] * 4
    first, second, labels = batches.pairs(held_out=False)
    assert {int(n) for n in first} == {0, 1, 2, 4, 5}
    assert len(labels) == 5 * 10
    assert labels.unique().tolist() == [1.0]
    assert {int(n) for n in second} == {n for n in range(6, 20) if n % 4 != 3}
    assert batches.pairs(held_out=True)[0].tolist() == [3] * 4


def test_both_kinds_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^here: no episode to train on is marked as a demonst"):
        batches_of(mixed(tmp_path / "own", 0, 5))
    with pytest.raises(ConfigError, match=r"^here: all episodes to train on are demonstrations; "):
        batches_of(mixed(tmp_path / "shown", 5, 0))


def test_without_held_out_demonstrations_nothing_is_measured(tmp_path: Path) -> None:
    batches = batches_of(mixed(tmp_path / "data", 3, 6))
    assert batches.batch(held_out=True) is None
    assert len(batches.pairs(held_out=True)[2]) == 0


def test_a_mark_comes_back(tmp_path: Path) -> None:
    made = mixed(tmp_path / "data", 2, 1)
    assert [made.episode(n).demonstration for n in made.numbers()] == [True, True, False]
    archive = made.archive(holdout_every=2)
    assert archive.demonstrations().tolist() == [0]
    assert archive.demonstrations(held_out=True).tolist() == [1]
    plain = dataclasses.replace(made.episode(0), demonstration=False)
    assert not made.episode(made.add_episode(plain)).demonstration
