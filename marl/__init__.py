"""Sparse-reward cooperative multi-agent reinforcement learning from preferences (IMAP)."""

from typing import TYPE_CHECKING

from envs import lazy_attributes

if TYPE_CHECKING:
    from marl.callbacks import Callback
    from marl.config import Config, ConfigError
    from marl.config.io import load_config
    from marl.data.types import Rewards, Transitions
    from marl.evaluation import evaluate
    from marl.policy import Policy, load
    from marl.preferences.labellers import EpisodePairs, Labeller
    from marl.rewards.base import RewardModel
    from marl.rewards.fit import fit_reward
    from marl.rewards.imitate import imitate
    from marl.runs import train
    from marl.trainer import Trainer

__version__ = "0.1.0"

__all__ = [
    "Callback",
    "Config",
    "ConfigError",
    "EpisodePairs",
    "Labeller",
    "Policy",
    "RewardModel",
    "Rewards",
    "Trainer",
    "Transitions",
    "UserError",
    "evaluate",
    "fit_reward",
    "imitate",
    "load",
    "load_config",
    "train",
]


class UserError(Exception):
    """An error whose message says what to do; the command line shows it without a traceback."""


__getattr__ = lazy_attributes(
    __name__,
    {
        "Callback": "marl.callbacks",
        "Config": "marl.config",
        "ConfigError": "marl.config",
        "load_config": "marl.config.io",
        "Rewards": "marl.data.types",
        "Transitions": "marl.data.types",
        "evaluate": "marl.evaluation",
        "Policy": "marl.policy",
        "load": "marl.policy",
        "EpisodePairs": "marl.preferences.labellers",
        "Labeller": "marl.preferences.labellers",
        "RewardModel": "marl.rewards.base",
        "fit_reward": "marl.rewards.fit",
        "imitate": "marl.rewards.imitate",
        "train": "marl.runs",
        "Trainer": "marl.trainer",
    },
)
