"""A run whose preferences train the policy itself (`--algorithm dpo`)."""

from pathlib import Path
from typing import Any

import pytest
import torch

import marl
from marl.rewards.io import load_reward
from marl.rewards.ratio_learner import RatioLearner
from marl.trainer import Trainer
from tests.command_line import run

SMALL: dict[str, Any] = {
    "algorithm": "dpo",
    "env.name": "probe/local_credit",
    "env.num_envs": 8,
    "threads": 1,
    "learner.rollout_steps": 16,
    "network.hidden_sizes": [8],
    "reward.batch_episodes": 8,
    "reward.learning_rate": 0.01,
    "preferences.replay_steps": 1600,
    "total_steps": 640,
}


def started(**settings: Any) -> tuple[Trainer, RatioLearner]:
    trainer = Trainer(marl.load_config(overrides=SMALL | settings))
    assert isinstance(trainer.reward, RatioLearner)
    return trainer, trainer.reward


def weights(module: Any) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


def test_the_actor_is_the_model_and_the_reference_moves_by_its_period() -> None:
    trainer, reward = started(
        **{"reward.ratio.reference_period": 3, "reward.ratio.reference_rate": 0.5}
    )
    assert reward.model.policy is trainer.learner.actor
    before = weights(reward.model.reference)
    rows = [trainer.iterate() for _ in range(2)]
    assert all(
        torch.equal(a, b) for a, b in zip(before, weights(reward.model.reference), strict=True)
    )
    rows.append(trainer.iterate())
    policy = weights(trainer.learner.actor)
    for old, new, moved in zip(before, policy, weights(reward.model.reference), strict=True):
        torch.testing.assert_close(moved, 0.5 * (old + new))
    assert any(not torch.equal(old, new) for old, new in zip(before, policy, strict=True))
    assert {"preference/loss", "policy/entropy", "reward/kept_steps"} <= rows[-1].keys()
    assert not any(name.startswith("value/") for name in rows[-1])


def test_a_fit_that_held_out_pairs_speak_against_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainer, reward = started()
    losses = iter(range(1000))
    monkeypatch.setattr(reward, "_held_out_loss", lambda batch: float(next(losses)))
    while reward.num_fits == 0:
        before = weights(trainer.learner.actor)
        row = trainer.iterate()
    assert row["reward/kept_steps"] == 0.0
    assert row["reward/gradient_steps"] == 4.0  # two measurements after two steps each
    assert all(map(torch.equal, before, weights(trainer.learner.actor)))


def test_as_many_steps_as_asked_for() -> None:
    trainer, _ = started(**{"reward.gradient_steps": 0, "reward.env_steps_per_gradient_step": 64})
    rows = [trainer.iterate() for _ in range(3)]
    assert rows[-1]["reward/gradient_steps"] >= 2.0


def test_the_policy_of_a_run_is_played_filmed_and_labels(tmp_path: Path) -> None:
    flags = [
        f"--{k}={v}".replace("_", "-")
        for k, v in SMALL.items()
        if k not in ("env.name", "network.hidden_sizes")
    ]
    run_dir = tmp_path / "run"
    assert run("train", *flags, "--env.name=probe/local_credit", "--run-dir", run_dir) == 0
    assert run("evaluate", run_dir, "--episodes=4", "--num-envs=2") == 0
    assert run("watch", run_dir, "--max-frames=3", "--width=320") == 0
    policy = marl.load(run_dir)
    reward = load_reward(run_dir, policy.spec, "here")
    assert not any(p.requires_grad for p in reward.model.parameters())


def test_a_run_that_starts_from_another_has_its_policy_as_reference(tmp_path: Path) -> None:
    config = marl.load_config(overrides=SMALL)
    for _ in marl.train(config, tmp_path):
        pass
    trainer, reward = started(init=str(tmp_path))
    assert "reference: the policy that was taken" in trainer.init_notes
    theirs = marl.load(tmp_path).actor.state_dict()
    for policy in (reward.model.policy, reward.model.reference):
        mine = policy.state_dict()  # type: ignore[attr-defined]  # modules
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_a_policy_ratio_beside_the_runs_own_policy_pays_advantages() -> None:
    """PPO then improves the run's policy by them, and no critic is fitted."""
    trainer = Trainer(marl.load_config(overrides=SMALL | {"reward.source": "learned"}))
    rows = [trainer.iterate() for _ in range(4)]
    assert "policy/kl" in rows[-1]
    assert "policy/advantage_correlation" in rows[-1]
    assert not any(name.startswith("value/") for name in rows[-1])


def test_episodes_too_long_for_a_recurrent_policy_are_one_line() -> None:
    settings = {"env.name": "mamujoco/reacher_2x1", "env.options": {"max_steps": 600}}
    with pytest.raises(marl.ConfigError, match=r'network\.recurrence: "gru" is fitted on whole'):
        started(**{"network.recurrence": "gru", "preferences.replay_steps": 20_000} | settings)
