"""Labelled batches from a preference dataset: what is trained on, held out and left out.

Axes: M episodes, B pairs.
"""

import itertools
from pathlib import Path

import torch

from marl.config import RewardConfig
from marl.data.replay import in_order
from marl.nn.normalisation import TeamNorm
from marl.preferences.dataset import Answer, EpisodeArchive, now
from marl.preferences.dataset.dataset import DatasetBatches
from marl.rewards import FactoredReward
from marl.rewards.base import Batches
from marl.rewards.losses import episode_scores
from tests.unit.test_preference_dataset import dataset_of, replay_of


def answer(first: int, second: int, label: float | None) -> Answer:
    return Answer(first=first, second=second, label=label, source="person:ann", at=now())


def archive_of(folder: Path) -> EpisodeArchive:
    """Return episodes of which every third number is held out."""
    return dataset_of(folder)[0].archive(holdout_every=3)


def batches_of(
    archive: EpisodeArchive, answers: list[Answer], episodes: int = 32
) -> DatasetBatches:
    config = RewardConfig(batch_episodes=episodes, sample_steps=3)
    return DatasetBatches(archive, answers, config, torch.Generator().manual_seed(0))


def test_a_pair_with_a_held_out_episode_is_never_trained_on(tmp_path: Path) -> None:
    archive = archive_of(tmp_path / "dataset")
    numbers = archive.numbers.tolist()
    answers = [answer(a, b, float(a > b)) for a in numbers for b in numbers if a != b]
    batches = batches_of(archive, answers)
    assert isinstance(batches, Batches)
    train, measure = batches.pairs(held_out=False), batches.pairs(held_out=True)
    assert {n % 3 for n in torch.cat(train[:2]).tolist()} == {0, 1}
    assert all(
        2 in (a % 3, b % 3) for a, b in zip(*map(torch.Tensor.tolist, measure[:2]), strict=True)
    )
    assert len(train[0]) + len(measure[0]) == len(answers)
    own = set(archive.available().tolist())
    for _ in range(20):
        batch = batches.batch()
        assert batch is not None
        seen = batch.transitions.state[:, 0]
        expected = archive.steps(archive.available(), torch.zeros(len(own), 1, dtype=torch.int64))
        rows = {tuple(row) for row in expected.state[:, 0, :2].tolist()}  # copy and episode
        assert {tuple(row) for row in seen[:, :2].tolist()} <= rows


def test_a_batch_holds_the_labels_of_its_pairs(tmp_path: Path) -> None:
    archive = archive_of(tmp_path / "dataset")
    numbers = archive.available().tolist()
    answers = [answer(a, b, a / 100) for a, b in itertools.pairwise(numbers)]
    batch = batches_of(archive, answers, episodes=6).batch()
    assert batch is not None
    assert len(batch.labels) == 3
    places = batch.transitions.state[:, 0, :2]
    everything = archive.steps(archive.numbers, torch.zeros_like(archive.numbers).unsqueeze(-1))
    for row, label in zip(batch.first.tolist(), batch.labels.tolist(), strict=True):
        [match] = (everything.state[:, 0, :2] == places[row]).all(dim=-1).nonzero().tolist()
        assert archive.numbers[match[0]] / 100 == label


def test_what_cannot_be_used_is_counted(tmp_path: Path) -> None:
    archive = archive_of(tmp_path / "dataset")
    first, second = archive.available()[:2].tolist()
    given = [(first, second, None), (first, 999, 1.0), (999, 998, None), (first, second, 0.5)]
    batches = batches_of(archive, [answer(*each) for each in given])
    assert (batches.num_skipped, batches.num_orphaned) == (2, 1)
    assert batches.pairs(held_out=False)[2].tolist() == [0.5]
    assert batches.batch(held_out=True) is None


def test_a_recurrent_reward_reads_no_further_than_the_longest_episode(tmp_path: Path) -> None:
    """And finds what it finds with the time limit's rows, whose last ones are padding."""
    archive = archive_of(tmp_path / "dataset")
    of = {int(archive.lengths[i]): n for i, n in enumerate(archive.numbers.tolist()) if n % 3 < 2}
    answers = [answer(of[3], of[5], 1.0)]  # the time limit is 7
    config = RewardConfig(recurrence="gru", hidden_sizes=(8,), mixer_hidden=8)
    batch = DatasetBatches(archive, answers, config, torch.Generator().manual_seed(0)).batch()
    assert batch is not None
    assert batch.transitions.obs.shape[1] == 5
    assert sorted(batch.step_weights.sum(dim=1).tolist()) == [3.0, 5.0]

    spec = replay_of("plain")[1]
    norm, draws = TeamNorm(spec, enabled=False), torch.Generator().manual_seed(0)
    model = FactoredReward(spec, config, 0.9, norm, draws)
    cut = episode_scores(
        model(batch.transitions).team, batch.step_weights, batch.lengths, config, 7
    )
    numbers = torch.tensor(sorted((of[3], of[5])))
    offsets = torch.arange(7).expand(2, 7)
    steps = in_order(archive.steps(numbers, offsets), offsets, offsets >= 0)
    weights = (offsets < batch.lengths.unsqueeze(-1)).float()
    whole = episode_scores(model(steps).team, weights, batch.lengths, config, 7)
    assert torch.allclose(cut, whole, atol=1e-6)


def test_a_batch_holds_the_returns_of_its_episodes(tmp_path: Path) -> None:
    archive = archive_of(tmp_path / "dataset")
    numbers = archive.available()[:3]
    answers = [answer(a, b, 1.0) for a, b in itertools.pairwise(numbers.tolist())]
    batches = batches_of(archive, answers)
    batch = batches.batch()
    assert batch is not None
    assert torch.equal(batch.returns, archive.episodes(numbers).returns)
    deviation = archive.episodes(archive.numbers).returns.to(torch.float64).std(correction=0)
    assert batch.return_scale == float(deviation) > 0.0
