"""One of several processes of a run: what torchrun tells it, and its share of the settings."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

from marl import UserError
from marl.config import Config, ConfigError
from marl.utils.ranks import SINGLE, Ranks

LAUNCH = ".launch"
"""File of a run's folder: the id of the launch by torchrun, or by --ray-workers."""
RAY_WORKERS = "MARL_RAY_WORKERS"
"""Environment variable of processes that --ray-workers has started: how many they are."""
ANSWER_SECONDS = 900.0
"""Seconds after which a process that does not answer is taken for lost.

One that was killed is noticed at once, since its connections are closed. So long waits a run only
where a machine has vanished, or where an environment hangs.
"""
_ENDLESS = 30 * 86400.0
"""Seconds that stand for ever."""


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


@contextmanager
def before_joining() -> Iterator[None]:
    """Around what every process of a machine does alike: the first of them tells what is wrong."""
    try:
        yield
    except UserError:
        if os.environ.get("LOCAL_RANK", "0") != "0":
            raise SystemExit(1) from None
        raise


@contextmanager
def processes(config: Config | None = None) -> Iterator[Ranks]:
    """Yield the processes that torchrun has started, joined, of which the first speaks.

    With the settings of a run they may train it. One is alone where torchrun has started none;
    PyTorch is not imported then.
    """
    if read_launch() is None:
        yield SINGLE
        return
    from marl.utils.distributed import joined, one_voice

    device = "cpu" if config is None else config.device
    seconds = ANSWER_SECONDS if config is None else answer_seconds(config)
    with joined(device, answer_seconds=seconds) as ranks, one_voice(ranks):
        yield ranks


def answer_seconds(config: Config) -> float:
    """Return how long a process of a run waits for the others.

    A labeller of the user's may take up to its deadline in one of them.
    """
    preferences = config.preferences
    is_own = any(":" in name or name == "python" for name in preferences.labellers)
    if not (config.learns_from_labels and is_own):
        return ANSWER_SECONDS
    return ANSWER_SECONDS + (preferences.deadline or _ENDLESS)


def num_restarts(environment: Mapping[str, str] = os.environ) -> int:
    """Return how often torchrun has started the processes again; 0 without it."""
    return _number(environment, "TORCHELASTIC_RESTART_COUNT", "0")


def launch_id(environment: Mapping[str, str] = os.environ) -> str:
    """Return what stays the same when torchrun starts its processes again; empty without it."""
    return environment.get("TORCHELASTIC_RUN_ID", "")


def command_to_go_on(folder: object, size: int, environment: Mapping[str, str] = os.environ) -> str:
    """Return what to type to go on with a run of so many processes, started as this one was."""
    resume = f"marl resume {folder}"
    if environment.get(RAY_WORKERS):
        return f"`{resume} --ray-workers {size}`"
    return f"`{resume}`" if size == 1 else f"the same torchrun command with `-m {resume}`"


def _number(environment: Mapping[str, str], name: str, default: str = "") -> int:
    value = environment.get(name, default)
    if not value.isdecimal():
        raise ConfigError(f"the environment variable {name} is {value!r}; torchrun sets a number")
    return int(value)


def share_of(config: Config, size: int, *, local_rank: int = 0, local_size: int = 1) -> Config:
    """Return the settings of one of `size` processes, of which `local_size` are on its machine.

    Environments, episodes and answers that are kept, and episodes of a gradient step are divided;
    physics threads by the processes of the machine. Device ``cuda`` is the GPU `local_rank`. What
    is counted over all processes (`total_steps`, numbers of questions) stays as it is.
    """
    if size == 1:
        return config
    if config.env.num_envs % size:
        raise ConfigError(
            f"env.num_envs: got {config.env.num_envs}, which {size} processes cannot share "
            f"equally; set it to a multiple of {size}, or start another number of processes"
        )
    preferences, reward = config.preferences, config.reward
    try:
        return replace(
            config,
            device=f"cuda:{local_rank}" if config.device == "cuda" else config.device,
            threads=max(1, config.threads // local_size),
            env=replace(config.env, num_envs=config.env.num_envs // size),
            reward=replace(reward, batch_episodes=max(2, -(-reward.batch_episodes // size))),
            preferences=replace(
                preferences,
                replay_steps=max(1, preferences.replay_steps // size),
                replay_episodes=max(2, preferences.replay_episodes // size),
                buffer_pairs=-(-preferences.buffer_pairs // size),
                retire_after=-(-preferences.retire_after // size),
            ),
        )
    except ConfigError as error:
        raise ConfigError(
            f"{error} (of each of {size} processes, which have env.num_envs = "
            f"{config.env.num_envs // size} each)"
        ) from None
