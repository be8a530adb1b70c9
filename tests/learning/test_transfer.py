"""Preferences passed on: from a run to a dataset, to a reward model, to a run with another seed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import marl
from marl.config.io import load_config
from marl.preferences.dataset.export import export_run

SETTINGS: dict[str, Any] = {
    "algorithm": "slf",
    "total_steps": 24_000,
    "threads": 1,
    "env.name": "particles/nav_3",
    "env.num_envs": 32,
    "learner.rollout_steps": 25,
    "learner.epochs": 6,
    "learner.entropy_coef": 0.01,
    "learner.learning_rate": 2e-3,
    "network.hidden_sizes": [32],
    "reward.hidden_sizes": [32],
    "reward.mixer_hidden": 32,
    "reward.learning_rate": 3e-3,
    "reward.gradient_steps": 6,
    "preferences.replay_steps": 32_000,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a run and what was exported from it."""
    folder = tmp_path_factory.mktemp("work")
    for _ in marl.train(load_config(overrides=SETTINGS), folder / "run"):
        pass
    # All 960 episodes: the newest 640, of a team that plays well by then, say too little about how
    # a new one begins, and taught pupils next to nothing (-20.7, -24.2, -25.6).
    export_run(folder / "run", folder / "dataset", pairs=1000)
    return folder


def test_what_one_run_prefers_teaches_another(folder: Path) -> None:
    # Held-out pairs: guessing is right on .5; this fit is on .91.
    # Return: standing still -26.5, random play -28; the optimum is about -7, which nav_6, the same
    # task with more agents, reaches in the learning benchmark. At this budget the teacher comes to
    # -16.7, and its pupils of seeds 7, 8 and 9, which see no return at all, to -16.1, -20.3, -18.7.
    reward = load_config(overrides=SETTINGS).reward
    report = marl.fit_reward(
        folder / "dataset", model="slf", steps=200, reward=reward, out=folder / "fit"
    )
    assert report.held_out.pairs == 125
    assert report.held_out.accuracy > 0.85
    assert report.held_out.calibration.error < 0.15
    pupil = {
        "seed": 7,
        "preferences.labeller": "model",
        "preferences.model.run": str(folder / "fit"),
    }
    iterations = marl.train(load_config(overrides=SETTINGS | pupil))
    returns = [metrics["return/mean"] for metrics in iterations]
    standing_still, threshold = -26.5, -21.0
    assert float(np.mean(returns[:3])) < standing_still
    assert float(np.mean(returns[-3:])) > threshold
