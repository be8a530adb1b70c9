"""Every labeller answers in range, alike for every order of sides and whatever else is asked.

Axes: B pairs.
"""

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from marl.config import PreferenceConfig, TeacherConfig
from marl.config.io import load_config
from marl.config.preferences import ModelConfig
from marl.preferences import Cascade, EpisodePairs, Labeller, ReturnLabeller, Vote, make_labeller
from marl.preferences.labellers import checked_labels
from marl.recorder import save_trainer
from marl.trainer import Trainer
from marl.utils.seeding import Seeds

NOISY = TeacherConfig(rationality=2.0, mistakes=0.2, skip_below=-0.5, tie_within=0.3)
SETTINGS: dict[str, dict[str, Any]] = {
    "return": {},
    "margin": {"margin": 1.0},
    "facts": {"labeller": "facts", "facts": ("arrived", "mean_distance")},
    "novelty": {"labeller": "facts", "facts": ("novelty",)},
    "tie-break": {"margin": 5.0, "tie_break": ("arrived", "return")},
    "noisy": {"teacher": NOISY},
    "noisy facts": {"labeller": "facts", "facts": ("arrived",), "teacher": NOISY},
}


@pytest.fixture(scope="module")
def trainer() -> Trainer:
    """Return a trainer whose replay buffer holds 60 episodes."""
    trainer = Trainer(
        load_config(
            overrides={
                "env.name": "particles/nav_3",
                "env.num_envs": 20,
                "learner.rollout_steps": 25,
                "learner.epochs": 1,
                "preferences.replay_steps": 2000,
                "threads": 1,
            }
        )
    )
    for _ in range(3):
        trainer.iterate()
    return trainer


@pytest.fixture(scope="module")
def model(trainer: Trainer, tmp_path_factory: pytest.TempPathFactory) -> PreferenceConfig:
    """Return settings under which the trainer's own reward model labels."""
    folder: Path = tmp_path_factory.mktemp("run")
    save_trainer(trainer, folder / "checkpoints")
    return PreferenceConfig(labeller="model", model=ModelConfig(run=str(folder)))


def pairs_of(trainer: Trainer, first: torch.Tensor, second: torch.Tensor) -> EpisodePairs:
    assert trainer.feedback is not None
    replay = trainer.feedback.replay
    return EpisodePairs(first=replay.episodes(first), second=replay.episodes(second))


def labeller_of(trainer: Trainer, name: str, model: PreferenceConfig) -> Labeller:
    if name == "model":
        return make_labeller(model, trainer.env.spec, Seeds(3))
    parts = {
        "cascade": lambda: Cascade(ReturnLabeller(margin=3.0), ReturnLabeller(), pass_ties=True),
        "vote": lambda: Vote(ReturnLabeller(), labeller_of(trainer, "noisy", model), at_least=2),
    }
    if name in parts:
        return parts[name]()
    return make_labeller(PreferenceConfig(**SETTINGS[name]), trainer.env.spec, Seeds(3))


@pytest.mark.parametrize("name", [*SETTINGS, "model", "cascade", "vote"])
def test_labels_are_antisymmetric_and_do_not_depend_on_the_other_pairs(
    trainer: Trainer, name: str, model: PreferenceConfig
) -> None:
    labeller = labeller_of(trainer, name, model)
    first = torch.arange(0, 58)
    second = first + 2
    labels = checked_labels(labeller, name, pairs_of(trainer, first, second))
    turned = checked_labels(labeller, name, pairs_of(trainer, second, first))
    assert torch.equal(torch.nan_to_num(labels, 7.0), torch.nan_to_num(1.0 - turned, 7.0))
    some = torch.tensor([40, 3, 11])
    alone = checked_labels(labeller, name, pairs_of(trainer, first[some], second[some]))
    assert torch.equal(torch.nan_to_num(alone, 7.0), torch.nan_to_num(labels[some], 7.0))
    assert len(labels.unique()) > 1


@pytest.mark.parametrize("name", [*SETTINGS, "model"])
def test_labellers_edit_nothing_and_survive_no_pairs(
    trainer: Trainer, name: str, model: PreferenceConfig
) -> None:
    labeller = labeller_of(trainer, name, model)
    pairs = pairs_of(trainer, torch.arange(5), torch.arange(5, 10))
    before = {f.name: getattr(pairs.first, f.name) for f in fields(pairs.first)}
    copies = {k: v.clone() for k, v in before.items() if isinstance(v, torch.Tensor)}
    labeller(pairs)
    for key, value in copies.items():
        assert torch.equal(value, getattr(pairs.first, key)), key
    nobody = torch.zeros(0, dtype=torch.int64)
    assert labeller(pairs_of(trainer, nobody, nobody)).shape == (0,)
