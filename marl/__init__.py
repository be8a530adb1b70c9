"""Sparse-reward cooperative multi-agent reinforcement learning from preferences (IMAP)."""

__version__ = "0.1.0"

from marl.config import Config, ConfigError
from marl.config.io import load_config
from marl.data.types import Rewards, Transitions
from marl.evaluation import evaluate
from marl.policy import Policy, load
from marl.preferences import EpisodePairs, Labeller
from marl.rewards import RewardModel
from marl.rewards.fit import fit_reward
from marl.runs import train
from marl.trainer import Trainer

__all__ = [
    "Config",
    "ConfigError",
    "EpisodePairs",
    "Labeller",
    "Policy",
    "RewardModel",
    "Rewards",
    "Trainer",
    "Transitions",
    "evaluate",
    "fit_reward",
    "load",
    "load_config",
    "train",
]
