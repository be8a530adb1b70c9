"""Reward models from the disk: a run's newest, or one that `marl fit-reward` has fitted."""

import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from envs import EnvSpec
from marl import __version__
from marl.config import Config, ConfigError
from marl.config.io import to_dict
from marl.learners.base import Actor
from marl.nn.encoders import input_widths
from marl.nn.normalisation import team_norm
from marl.policy import config_in, saved_spec, spec_in
from marl.rewards import RewardLearner, make_reward_learner
from marl.utils.checkpoint import (
    CheckpointError,
    check_layer_sizes,
    load_checkpoint,
    restoring,
    save_checkpoint,
)
from marl.utils.files import atomic_write, output
from marl.utils.plugins import (
    IDENTITY,
    check_trusted,
    environment_paths,
    identity_of,
    remember,
    reward_paths,
)

CPU = torch.device("cpu")


def save_reward(
    folder: Path, steps: int, config: Config, spec: EnvSpec, learner: RewardLearner
) -> Path:
    """Write a fitted reward model, its input statistics and what it was fitted to; return where."""
    path = _save(folder, steps, config, spec, learner, {})
    remember(identity_of(folder), config)
    return path


def write_fit(
    folder: Path,
    partial: Path,
    report: dict[str, Any],
    config: Config,
    spec: EnvSpec,
    learner: RewardLearner,
    *,
    actor: Actor | None = None,
    fitted: str = "",
) -> None:
    """Write a fit and ``report.json`` into `partial`, which is to become `folder`.

    With an `actor` it is a policy, `fitted` as the words say.
    """
    with output(folder, "choose another --out"):
        try:
            if actor is None:
                save_reward(partial, learner.num_fits, config, spec, learner)
            else:
                save_policy(partial, learner.num_fits, config, spec, learner, actor, fitted)
        except CheckpointError as error:
            raise error.__cause__ or error from None
        atomic_write(partial / "report.json", json.dumps(report, indent=1).encode())


def save_policy(
    folder: Path,
    steps: int,
    config: Config,
    spec: EnvSpec,
    learner: RewardLearner,
    actor: Actor,
    fitted: str,
) -> Path:
    """Write a policy that was fitted to a dataset, and its reward model; return where.

    The folder is one that `marl.load`, ``marl evaluate`` and ``marl watch`` play; `fitted` says in
    words how it came about. The environment that it names comes from the dataset, which may be a
    stranger's: its code is not trusted thereby.
    """
    policy = {"learner": {"actor": actor.state_dict()}, "fitted": fitted}
    path = _save(folder, steps, config, spec, learner, policy)
    if not environment_paths(config):
        remember(identity_of(folder), config)
    return path


def _save(
    folder: Path,
    steps: int,
    config: Config,
    spec: EnvSpec,
    learner: RewardLearner,
    more: dict[str, Any],
) -> Path:
    """Write the checkpoint of a fit and its identity; return where."""
    state = {
        "version": __version__,
        "config": to_dict(config),
        "spec": saved_spec(spec),
        "reward": learner.state_dict(),
    }
    path = save_checkpoint(folder / "checkpoints", steps, state | more, keep=1)
    (folder / IDENTITY).write_text(f"{secrets.token_hex(8)}\n")
    return path


def restored_reward(
    saved: dict[str, Any], config: Config, spec: EnvSpec, folder: Path
) -> RewardLearner | None:
    """Return the reward in the checkpoint of a run or a fit, on the CPU.

    None stands for the reward of a run that learns none, or none yet: training, too, waits for
    the first answer that is no tie.
    """
    with restoring(folder):
        if not is_learned(saved, config):
            return None
    check_trusted(reward_paths(config), folder, config)
    with restoring(folder):
        state = saved["trainer"]["reward"] if "trainer" in saved else saved["reward"]
        learner = _new_learner(spec, config, state, folder)
        learner.load_state_dict(state)
    return learner if learner.is_fitted else None


def is_learned(saved: Mapping[str, Any], config: Config) -> bool:
    """Return whether a checkpoint of these settings holds a reward model that has learned.

    That of a fit has; a run's waits for the first answer that is no tie, or was learned before.
    """
    if "trainer" not in saved:
        return "reward" in saved
    trainer = saved["trainer"]
    if not config.learns_reward:
        return False
    inherited = trainer["reward"].get("inherited", False)
    return bool(inherited or trainer["feedback"]["is_informative"])


def load_reward(folder: Path | str, spec: EnvSpec, setting: str) -> RewardLearner:
    """Return the reward model in a folder, for transitions of the environment `spec`.

    Its input statistics come with it. Raises `ConfigError`, which `setting` begins, where it does
    not fit.
    """
    folder = Path(folder)
    if not (folder / "checkpoints").is_dir():
        raise ConfigError(
            f"{setting}: {folder} is neither a run's folder nor one of `marl fit-reward`: it has "
            "no checkpoints/"
        )
    saved = load_checkpoint(folder / "checkpoints")[1]
    config = config_in(saved, str(folder))
    theirs = spec_in(saved, str(folder))
    if config.reward_choice.model == "constant":
        raise ConfigError(
            f"{setting}: the reward of {folder} (algorithm {config.algorithm}) repeats the returns "
            'of episodes and scores none by itself; use preferences.labeller = "return"'
        )
    if ":" not in config.reward_choice.model:
        _check_sizes(theirs, spec, folder, setting)
    if "trainer" in saved:
        learner = restored_reward(saved, config, spec, folder)
    else:
        check_trusted(reward_paths(config), folder, config)
        with restoring(folder):
            learner = _new_learner(spec, config, saved["reward"], folder)
            try:
                learner.load_state_dict(saved["reward"])
            except RuntimeError as error:  # PyTorch's, for parameters of other shapes
                raise ConfigError(
                    f"{setting}: the reward model {config.reward_choice.model} of {folder}, fitted "
                    f"to {theirs.name}, does not fit {spec.name}: {error}"
                ) from error
    if learner is None:
        raise ConfigError(
            f"{setting}: {folder} (algorithm {config.algorithm}) has learned no reward"
            + (" yet; train it on" if config.learns_reward else "; name a run that learns one")
        )
    freeze(learner.model)
    return learner


def _new_learner(
    spec: EnvSpec, config: Config, state: dict[str, Any], folder: Path
) -> RewardLearner:
    """Return a learner to load a state into; the input statistics are part of the model's.

    Of a policy that is its own reward model the state says which kind of reference it has: a
    uniform one has no tensors.
    """
    if config.reward_choice.model in ("factored", "central"):
        for inputs in input_widths(spec, config.reward.encoder):
            check_layer_sizes(folder, state, (*inputs, *config.reward.hidden_sizes))
    norm = team_norm(spec, config.network)
    uniform = not any(name.startswith("reference.") for name in state["model"])
    return make_reward_learner(spec, config, norm, torch.Generator(), CPU, uniform=uniform)


def freeze(model: nn.Module) -> None:
    """Leave a model as it is from here on."""
    model.eval().requires_grad_(False)


def sizes(spec: EnvSpec) -> dict[str, int | str]:
    """Return by name what the shipped reward models' networks are shaped by."""
    return {
        "agents": spec.num_agents,
        "observation features": spec.obs_size,
        "state features": spec.state_size,
        "kind of action": spec.action_kind,
        "actions": str(spec.action_parts) if spec.action_parts else spec.action_size,
    }


def _check_sizes(theirs: EnvSpec, ours: EnvSpec, folder: Path, setting: str) -> None:
    """Raise `ConfigError` naming both sides unless a shipped model of theirs reads our episodes."""
    there, here = sizes(theirs), sizes(ours)
    if apart := [name for name in there if there[name] != here[name]]:
        raise ConfigError(
            f"{setting}: the reward of {folder} was learned on {theirs.name} ("
            + ", ".join(f"{name}: {there[name]}" for name in apart)
            + f"), this run is on {ours.name} ("
            + ", ".join(f"{name}: {here[name]}" for name in apart)
            + "). The shipped reward models need equal numbers; one of your own (reward.model) "
            "that reads each agent alone fits any team size"
        )
