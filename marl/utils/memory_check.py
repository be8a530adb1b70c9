"""Whether a run fits into memory, said before anything large is allocated.

Axes: E environments, T time, N agents; O, S features.
"""

import mmap
import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch

from envs import EnvSpec
from marl.config import Config, ConfigError, NetworkConfig, RewardConfig
from marl.data.replay import make_replay
from marl.data.rollout import rollout_buffers
from marl.nn.encoders import input_widths


def check_memory(config: Config, spec: EnvSpec, processes: int = 1) -> None:
    """Raise `ConfigError` unless networks, rollout and replay buffer fit into memory.

    So many `processes` of this machine need as much each.
    """
    _check_networks(config, spec)
    rollout, replay = rollout_bytes(config, spec), replay_bytes(config, spec)
    rollout, replay = processes * rollout, processes * replay
    device = torch.device(config.device)
    if device.type == "cpu":
        budgets = [(rollout + replay, available_bytes(), "this machine")]
    else:
        on_device = torch.cuda.mem_get_info(device)[0]
        budgets = [(rollout, available_bytes(), "this machine"), (replay, on_device, str(device))]
    for needed, there, where in budgets:
        if there is not None and needed > there:
            raise ConfigError(
                f"environment {spec.name}: {spec.num_agents} agents that observe "
                f"{spec.obs_size:,} numbers each and a state of {spec.state_size:,} need "
                f"{size_text(replay)} for preferences.replay_steps = "
                f"{config.preferences.replay_steps:,} and {size_text(rollout)} for a rollout of "
                f"env.num_envs = {spec.num_envs} environments x "
                f"learner.rollout_steps = {config.learner.rollout_steps}, but {where} has "
                f"{size_text(there)} available; lower those three, or let "
                "the team observe less (pictures: `--env.options shrink 8 grey True`)"
            )


def _check_networks(config: Config, spec: EnvSpec) -> None:
    """Raise `ConfigError` where parameters, gradients and Adam's moments alone are too many."""
    there = available_bytes()
    sections: dict[str, NetworkConfig | RewardConfig] = {"network": config.network}
    if config.learns_reward:
        sections["reward"] = config.reward
    for section, settings in sections.items():
        hidden, setting = settings.hidden_sizes, f"{section}.hidden_sizes"
        needed = 4 * 4 * least_parameters(hidden, spec, settings.encoder)
        if there is not None and needed > there:
            raise ConfigError(
                f"{setting}: got {list(hidden)}, whose parameters with their gradients and Adam's "
                f"moments need {size_text(needed)} for one network alone, but this machine has "
                f"{size_text(there)} available; use smaller layers"
            )


def least_parameters(hidden_sizes: Sequence[int], spec: EnvSpec, encoder: str = "") -> int:
    """Return the weights of the smallest network with such layers: an agent's observation in."""
    widths = [*input_widths(spec, encoder)[0], *hidden_sizes, 1]
    return sum(inputs * outputs for inputs, outputs in pairwise(widths))


def replay_bytes(config: Config, spec: EnvSpec) -> int:
    """Return what the replay buffer would take; 0 where no reward is learned."""
    if not config.learns_reward:
        return 0
    rollout_steps, meta = config.learner.rollout_steps, torch.device("meta")
    return make_replay(spec, rollout_steps, config.preferences, meta).num_bytes


def rollout_bytes(config: Config, spec: EnvSpec) -> int:
    """Return what the buffers of one rollout would take."""
    with torch.device("meta"):  # shapes without memory
        buffers = rollout_buffers(spec, config.learner.rollout_steps, config.sees_hidden)
    apart = {id(tensor): tensor for tensor in buffers.values()}  # two names may share one
    return sum(tensor.numel() * tensor.element_size() for tensor in apart.values())


def available_bytes() -> int | None:
    """Return the memory that can be had without swapping; None where the system does not tell."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    names = getattr(os, "sysconf_names", {})  # which Windows lacks
    if {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= names.keys():
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def resident_mib() -> float:
    """Return the process's resident memory in MiB; NaN where the system does not tell."""
    status = Path("/proc/self/statm")
    if not status.exists():
        return float("nan")
    return int(status.read_text().split()[1]) * mmap.PAGESIZE / 2**20


def size_text(num_bytes: int) -> str:
    """Return e.g. ``3.4 TB`` or ``120 MB``."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9)):
        if num_bytes >= scale:
            return f"{num_bytes / scale:,.1f} {unit}"
    return f"{num_bytes / 1e6:,.0f} MB"
