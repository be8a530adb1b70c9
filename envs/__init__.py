"""Cooperative multi-agent environments, their contract, and a checker for your own."""

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from envs.base import (
        EntityList,
        EnvError,
        EnvSpec,
        EnvStep,
        Fact,
        HasClose,
        HasHiddenRewards,
        Replays,
        VecEnv,
        close_env,
    )
    from envs.checker import check_env
    from envs.frames import Frame, HasFrames
    from envs.registry import env_names, make_env, open_env
    from envs.simulated import SimulatedEnv, Task, View
    from envs.sparse import SparseRewards, unwrapped

__all__ = [
    "EntityList",
    "EnvError",
    "EnvSpec",
    "EnvStep",
    "Fact",
    "Frame",
    "HasClose",
    "HasFrames",
    "HasHiddenRewards",
    "Replays",
    "SimulatedEnv",
    "SparseRewards",
    "Task",
    "VecEnv",
    "View",
    "check_env",
    "close_env",
    "env_names",
    "make_env",
    "open_env",
    "unwrapped",
]


def lazy_attributes(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a package's ``__getattr__``; `homes` says in which module each public name stands.

    A name is imported when it is first used (PEP 562).
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(homes[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    return get


importlib.import_module("envs.processor")  # before NumPy is loaded, which reads what it sets
__getattr__ = lazy_attributes(
    __name__,
    {
        "EntityList": "envs.base",
        "EnvError": "envs.base",
        "EnvSpec": "envs.base",
        "EnvStep": "envs.base",
        "Fact": "envs.base",
        "HasClose": "envs.base",
        "HasHiddenRewards": "envs.base",
        "Replays": "envs.base",
        "VecEnv": "envs.base",
        "close_env": "envs.base",
        "check_env": "envs.checker",
        "Frame": "envs.frames",
        "HasFrames": "envs.frames",
        "env_names": "envs.registry",
        "make_env": "envs.registry",
        "open_env": "envs.registry",
        "SimulatedEnv": "envs.simulated",
        "Task": "envs.simulated",
        "View": "envs.simulated",
        "SparseRewards": "envs.sparse",
        "unwrapped": "envs.sparse",
    },
)
