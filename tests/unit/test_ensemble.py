"""Reward models that choose the questions: begun apart, taught from bootstrap samples, saved whole.

Axes: V models, M episodes.
"""

import copy
from typing import Any

import torch

from marl.config import Config
from marl.config.io import load_config
from marl.trainer import Trainer

SMALL: dict[str, Any] = {
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


def test_other_queries_have_no_ensemble() -> None:
    assert Trainer(small("uniform")).ensemble is None
