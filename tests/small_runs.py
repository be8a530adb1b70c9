"""Settings of a run that takes about a second, from Python."""

from marl.config import Config
from marl.config.io import load_config

SMALL: dict[str, object] = {
    "algorithm": "imap",
    "env.name": "particles/nav_3",
    "env.num_envs": 4,
    "learner.rollout_steps": 20,
    "learner.epochs": 2,
    "learner.minibatches": 2,
    "reward.gradient_steps": 2,
    "reward.batch_episodes": 8,
    "preferences.replay_steps": 800,
    "checkpoint_every": 240,
    "total_steps": 1200,
}
"""Fifteen iterations of 80 steps, a checkpoint every third; episodes of 25 span rollouts of 20."""


def small(**changes: object) -> Config:
    """Return these settings, some of them changed."""
    return load_config(overrides=SMALL | changes)
