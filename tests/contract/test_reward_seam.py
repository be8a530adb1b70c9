"""A reward model or a loss is one class and one line of a registry, or an import path.

Axes: M episodes, K sampled steps, N agents; ``*L`` any leading axes.
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import marl
from envs import EnvSpec
from marl.config import RewardConfig
from marl.config.io import load_config
from marl.config.presets import REWARD_LOSSES, REWARD_MODELS, LossEntry, ModelEntry
from marl.data.types import EpisodeBatch, Rewards, Transitions
from marl.nn.normalisation import TeamNorm
from marl.trainer import Trainer

SMALL: dict[str, Any] = {
    "algorithm": "imap",
    "env.name": "probe/local_credit",
    "env.num_envs": 8,
    "threads": 1,
    "learner.rollout_steps": 16,
    "learner.epochs": 1,
    "reward.batch_episodes": 8,
    "preferences.replay_steps": 1600,
}


class OwnReward(marl.RewardModel):
    """A user's model, built from the spec alone."""

    def __init__(self, spec: EnvSpec) -> None:
        super().__init__()
        self.score = nn.Linear(spec.obs_size, 1)

    def forward(self, transitions: Transitions) -> Rewards:
        local = self.score(transitions.next_obs).squeeze(-1)
        return Rewards(team=local.sum(dim=-1), local=local)


class NewReward(marl.RewardModel):
    """A model of the package: it also reads settings, gamma_R, statistics and a generator."""

    def __init__(
        self,
        spec: EnvSpec,
        config: RewardConfig,
        gamma: float,
        norm: TeamNorm,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.norm = norm
        self.score = nn.Linear(spec.state_size, 1)

    def forward(self, transitions: Transitions) -> Tensor:
        return self.score(self.norm.state(transitions.next_state)).squeeze(-1)


class AbsoluteLoss:
    """The mean absolute error of the mean reward to the return."""

    def __init__(self, config: RewardConfig, max_steps: int) -> None:
        self.max_steps = max_steps

    def __call__(self, rewards: Rewards, batch: EpisodeBatch) -> tuple[Tensor, dict[str, Tensor]]:
        sums = (batch.step_weights * rewards.team).sum(dim=-1)
        loss = (sums - batch.returns).abs().mean()
        return loss, {"absolute/loss": loss.detach()}

    def evaluate(self, rewards: Rewards, batch: EpisodeBatch) -> dict[str, float]:
        return {"absolute/held_out_loss": float(self(rewards, batch)[0])}


def trained(**settings: Any) -> tuple[Trainer, list[dict[str, float]]]:
    trainer = Trainer(load_config(overrides=SMALL | settings))
    return trainer, [trainer.iterate() for _ in range(4)]


def test_a_subclass_of_reward_model_is_named_by_its_path() -> None:
    trainer, rows = trained(**{"reward.model": f"{__name__}:OwnReward"})
    assert trainer.reward is not None
    assert isinstance(trainer.reward.model, OwnReward)
    assert "preference/loss" in rows[-1]
    assert "value/loss_local" in rows[-1]


def test_a_reward_model_without_forward_is_refused() -> None:
    class Unfinished(marl.RewardModel):
        pass

    with pytest.raises(TypeError, match="forward"):
        Unfinished()  # type: ignore[abstract]


def test_a_new_model_and_a_new_loss_take_one_line_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REWARD_MODELS, "new", ModelEntry(path=f"{__name__}:NewReward"))
    entry = LossEntry(path=f"{__name__}:AbsoluteLoss", needs_returns=True)
    monkeypatch.setitem(REWARD_LOSSES, "absolute", entry)
    trainer, rows = trained(**{"reward.model": "new", "reward.loss": "absolute"})
    assert trainer.reward is not None
    assert isinstance(trainer.reward.model, NewReward)
    assert trainer.feedback is not None
    assert trainer.feedback.labeller is None
    assert {"absolute/loss", "absolute/held_out_loss"} <= rows[-1].keys()
    assert "value/loss_local" not in rows[-1]
