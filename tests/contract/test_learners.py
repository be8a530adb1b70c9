"""Every learner keeps the protocol by which the trainer, evaluation and export know it."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import marl
from marl.config import ConfigError
from marl.data.types import Rewards, Rollout
from marl.learners.base import Actor, Learner
from marl.trainer import Trainer
from marl.utils.plugins import PluginError
from tests.learners import random_rewards

KINDS = ["mappo", "ippo", "happo", "tests.reinforce:Reinforce"]
SMALL: dict[str, Any] = {
    "algorithm": "imap",
    "env.name": "particles/nav_3",
    "env.num_envs": 4,
    "total_steps": 400,
    "threads": 1,
    "learner.rollout_steps": 25,
    "learner.epochs": 2,
    "network.hidden_sizes": [8],
    "reward.hidden_sizes": [8],
    "reward.mixer_hidden": 8,
    "reward.gradient_steps": 2,
    "preferences.replay_steps": 1000,
}


def settings(kind: str, **options: Any) -> marl.Config:
    return marl.load_config(overrides=SMALL | {"learner.kind": kind} | options)


def rollouts(trainer: Trainer, count: int) -> list[Rollout]:
    actor = trainer.learner.actor
    return [copy.deepcopy(trainer.collector.collect(actor)[0]) for _ in range(count)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_learner_keeps_its_protocol(kind: str) -> None:
    trainer = Trainer(settings(kind))
    assert isinstance(trainer.learner, Learner)
    assert isinstance(trainer.learner.actor, Actor)


@pytest.mark.parametrize("kind", KINDS)
def test_log_probabilities_are_those_of_the_actions_taken(kind: str) -> None:
    trainer = Trainer(settings(kind))
    trainer.iterate()
    (rollout,) = rollouts(trainer, 1)
    steps, actor = rollout.transitions, trainer.learner.actor
    found = actor.log_prob(steps.obs, rollout.sampled_actions, steps.action_mask)
    assert found.requires_grad
    assert torch.allclose(found, rollout.log_probs, atol=1e-5)
    # Chosen without noise: nothing is likelier.
    likeliest = actor.act(steps.obs, None, steps.action_mask)[1]
    assert (likeliest >= rollout.log_probs - 1e-5).all()


@pytest.mark.parametrize("kind", KINDS)
def test_an_update_moves_the_policy_and_nothing_else(kind: str) -> None:
    trainer = Trainer(settings(kind))
    (rollout,) = rollouts(trainer, 1)
    rewards = random_rewards(rollout)
    before, steps = copy.deepcopy((rollout, rewards)), rollout.transitions
    metrics = trainer.learner.update(rollout, rewards, 1.0)
    assert np.isfinite(list(metrics.values())).all()
    after = trainer.learner.actor.log_prob(steps.obs, rollout.sampled_actions, steps.action_mask)
    assert not torch.allclose(after, rollout.log_probs, atol=1e-5)
    for name, tensor in vars(steps).items():
        if tensor is not None:
            assert torch.equal(tensor, getattr(before[0].transitions, name)), name
    assert torch.equal(rewards.team, before[1].team)


@pytest.mark.parametrize("kind", KINDS)
def test_a_learner_continues_from_its_state(kind: str) -> None:
    trainer, other = (Trainer(settings(kind)) for _ in range(2))
    first, second = rollouts(trainer, 2)
    trainer.learner.update(first, random_rewards(first), 1.0)
    trainer.learner.advance(second)
    other.learner.load_state_dict(copy.deepcopy(trainer.learner.state_dict()))
    source = trainer.seeds.torch("learner", trainer.device)
    other.seeds.torch("learner", trainer.device).set_state(source.get_state())
    rewards = Rewards(team=random_rewards(second).team)
    expected = trainer.learner.update(second, rewards, 0.5)
    assert other.learner.update(second, rewards, 0.5) == expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("algorithm", ["sparse", "imap"])
def test_a_learner_is_trained_exported_and_evaluated(
    kind: str, algorithm: str, tmp_path: Path
) -> None:
    rows = list(marl.train(settings(kind, algorithm=algorithm), tmp_path / "run"))
    assert [row["steps"] for row in rows] == [100.0, 200.0, 300.0, 400.0]
    policy = marl.load(tmp_path / "run")
    assert not isinstance(policy.actor, Learner)  # critics and optimizers stay behind
    result = marl.evaluate(policy, greedy=True, episodes=4, seed=0, num_envs=2)
    assert np.isfinite(result.returns).all()


@pytest.mark.parametrize("kind", ["ippo", "mappo", "happo"])
def test_recurrent_learners_train(kind: str) -> None:
    options = {"network.recurrence": "gru", "network.hidden_sizes": [8, 8]}
    trainer = Trainer(settings(kind, algorithm="imap", **options))
    rows = [trainer.iterate() for _ in range(4)]
    assert np.isfinite(rows[-1]["policy/loss"])
    steps = rollouts(trainer, 1)[0].transitions
    with pytest.raises(ValueError, match="a recurrent policy has no log-probabilities of single"):
        trainer.learner.actor.log_prob(steps.obs, steps.actions)


class NoLearner:
    """Has nothing of one."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.actor = None


def test_what_is_no_learner_is_refused() -> None:
    with pytest.raises(PluginError, match=r"types:SimpleNamespace is made as .*TypeError"):
        Trainer(settings("types:SimpleNamespace"))
    with pytest.raises(PluginError, match=r"test_learners:NoLearner is no learner"):
        Trainer(settings("tests.contract.test_learners:NoLearner"))
    with pytest.raises(
        ConfigError, match=r"got 'mapo', expected mappo, ippo, happo, or an import path"
    ):
        Trainer(settings("mapo"))
