"""What torchrun tells a process about itself and the others, in environment variables."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from marl.config import ConfigError

LAUNCH = ".launch"
"""File of a run's folder: the id of the launch by torchrun."""


@dataclass(frozen=True, kw_only=True)
class Launch:
    """One of several processes of a run."""

    rank: int
    size: int
    local_rank: int
    """Number among the processes of this machine."""
    local_size: int
    host: str
    port: int
    """Where the processes meet."""


def read_launch(environment: Mapping[str, str] = os.environ) -> Launch | None:
    """Return which process this is; None where it is alone.

    Raises `ConfigError` where only a part of what must be known is there.
    """
    if environment.get("WORLD_SIZE", "1") == "1":
        return None
    missing = [n for n in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not environment.get(n)]
    if missing:
        raise ConfigError(
            f"WORLD_SIZE is {environment['WORLD_SIZE']!r}, but {' and '.join(missing)} "
            "is not set; start several processes by `torchrun --standalone --nproc-per-node 2 -m "
            "marl train ...`, or unset WORLD_SIZE"
        )
    return Launch(
        rank=_number(environment, "RANK"),
        size=_number(environment, "WORLD_SIZE"),
        local_rank=_number(environment, "LOCAL_RANK", "0"),
        local_size=_number(environment, "LOCAL_WORLD_SIZE", "1"),
        host=environment["MASTER_ADDR"],
        port=_number(environment, "MASTER_PORT"),
    )


def num_restarts(environment: Mapping[str, str] = os.environ) -> int:
    """Return how often torchrun has started the processes again; 0 without it."""
    return _number(environment, "TORCHELASTIC_RESTART_COUNT", "0")


def launch_id(environment: Mapping[str, str] = os.environ) -> str:
    """Return what stays the same when torchrun starts its processes again; empty without it."""
    return environment.get("TORCHELASTIC_RUN_ID", "")


def _number(environment: Mapping[str, str], name: str, default: str = "") -> int:
    value = environment.get(name, default)
    if not value.isdecimal():
        raise ConfigError(f"the environment variable {name} is {value!r}; torchrun sets a number")
    return int(value)
