"""Cooperative multi-agent environments, their contract, and a checker for your own."""

from envs.base import EnvError, EnvSpec, EnvStep, HasHiddenRewards, VecEnv
from envs.checker import check_env
from envs.registry import env_names, make_env

__all__ = [
    "EnvError",
    "EnvSpec",
    "EnvStep",
    "HasHiddenRewards",
    "VecEnv",
    "check_env",
    "env_names",
    "make_env",
]
