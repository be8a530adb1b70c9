"""Reward models that choose the questions: begun apart, taught from bootstrap samples, saved whole.

Axes: V models, M episodes.
"""

import copy
from typing import Any

import pytest
import torch

from marl.config import Config
from marl.config.io import load_config
from marl.rewards.ensemble import BootstrapBatches
from marl.trainer import Trainer

SMALL: dict[str, Any] = {
    "algorithm": "imap",
    "env.name": "probe/local_credit",
    "env.num_envs": 8,
    "threads": 1,
    "learner.rollout_steps": 16,
    "learner.epochs": 1,
    "reward.hidden_sizes": [8],
    "reward.mixer_hidden": 8,
    "reward.batch_episodes": 8,
    "preferences.replay_steps": 1600,
    "preferences.queries_per_iteration": 6,
}


def small(query: str, **overrides: Any) -> Config:
    return load_config(overrides=SMALL | {"preferences.query": query} | overrides)


def scores_of(trainer: Trainer) -> torch.Tensor:
    assert trainer.feedback is not None
    assert trainer.ensemble is not None
    replay = trainer.feedback.replay
    numbers = replay.available()[:5]
    lengths = replay.episodes(numbers).lengths
    offsets = torch.arange(8).expand(5, 8)
    return trainer.ensemble.scores(replay.steps(numbers, offsets), torch.ones(5, 8), lengths)


def test_members_begin_apart_and_learn() -> None:
    trainer = Trainer(small("disagreement", **{"preferences.ensemble_size": 4}))
    assert trainer.ensemble is not None
    before = [copy.deepcopy(m.model.state_dict()) for m in trainer.ensemble.others]
    for _ in range(2):
        trainer.iterate()
    scores = scores_of(trainer)
    assert scores.shape == (4, 5)
    assert len(set(map(tuple, scores.tolist()))) == 4
    for member, weights in zip(trainer.ensemble.others, before, strict=True):
        assert member.is_fitted
        after = member.model.state_dict()
        assert any(not torch.equal(after[name], weights[name]) for name in weights)


def test_the_first_member_is_the_run_s_own_model() -> None:
    trainer = Trainer(small("entropy", **{"preferences.ensemble_size": 1}))
    for _ in range(2):
        trainer.iterate()
    assert trainer.ensemble is not None
    assert trainer.ensemble.others == []
    assert scores_of(trainer).shape == (1, 5)


def test_a_member_learns_from_its_bootstrap_sample_and_is_not_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pipeline = Trainer(small("disagreement")).feedback
    assert pipeline is not None
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(pipeline, "batch", lambda **options: asked.append(options))
    batches = BootstrapBatches(pipeline, 3)
    batches.batch()
    assert asked == [{"member": 3}]
    assert batches.batch(held_out=True) is None
    assert len(asked) == 1


def test_every_member_is_saved_with_its_number_of_fits() -> None:
    config = small("disagreement", **{"preferences.ensemble_size": 3})
    trainer = Trainer(config)
    for _ in range(2):
        trainer.iterate()
    ensemble, other = trainer.ensemble, Trainer(config).ensemble
    assert ensemble is not None
    assert other is not None
    other.load_state_dict(copy.deepcopy(ensemble.state_dict()))
    for mine, theirs in zip(ensemble.others, other.others, strict=True):
        assert theirs.num_fits == mine.num_fits > 0
        for name, weight in mine.model.state_dict().items():
            assert torch.equal(theirs.model.state_dict()[name], weight), name
    with pytest.raises(ValueError, match="shorter"):
        other.load_state_dict({"others": ensemble.state_dict()["others"][:1]})


def test_other_queries_have_no_ensemble() -> None:
    assert Trainer(small("uniform")).ensemble is None
