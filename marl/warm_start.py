"""A new run that starts from what another has learned: policy, critics, statistics, reward model.

What is taken are tensors that fit a network or a buffer of this run; the code that the other run
names is never imported. Optimizers start anew; so do the replay buffer and the answers of the
labeller, unless they are asked for.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from envs import EnvSpec
from marl.config import Config, ConfigError
from marl.config.io import flat, to_dict
from marl.learners.base import Learner
from marl.policy import config_in, learner_in, spec_in
from marl.preferences.pipeline import FeedbackPipeline
from marl.preferences.resharding import as_one, inherited
from marl.rewards.io import is_learned, sizes
from marl.rewards.learner import RewardLearner
from marl.rewards.ratio_learner import RatioLearner
from marl.utils.checkpoint import (
    CheckpointError,
    check_finite_weights,
    checkpoint_name,
    load_saved,
    restoring,
)

HELD_STEPS = 1e6
"""Statistics of observations that were taken from a fit count as those of at least so many steps.

A policy imitated from five episodes has the statistics of a hundred steps. The first rollouts would
replace them, and the policy, which reads by them, would act otherwise without having learned. Those
of a run go on as they were: on nav_6, held, they left runs that started from a run a little lower.
"""
OBS_COUNT = "norm.obs_norm.count"
"""Where an actor's state keeps how many steps its statistics of observations are of."""
STATE_NORM = "norm.state_norm."
"""Where an actor's state keeps the statistics of team states, which it does not read."""
BUFFER_SETTINGS = (
    "env.num_envs",
    "learner.rollout_steps",
    "preferences.replay_steps",
    "preferences.replay_episodes",
    "preferences.holdout_every",
)
"""What shapes the replay buffer."""
BUFFER_SPEC = (
    "state_size",
    "max_steps",
    "masks_actions",
    "agents_die",
    "facts",
    "obs_image",
    "state_images",
)
"""What else of an environment is in the replay buffer, or decides how it is read."""


def warm_start(
    config: Config,
    spec: EnvSpec,
    learner: Learner,
    reward: RewardLearner | None,
    feedback: FeedbackPipeline | None,
) -> list[str]:
    """Start a new run from ``config.init`` and return a line for everything taken or not.

    The actor must fit, with its statistics of observations; critics and the statistics of states
    are taken where they fit; the reward model is taken, and must fit, with ``config.init_reward``,
    and so are the episodes and the answers about them with ``config.init_buffer``.
    Raises `ConfigError` where what must fit does not.
    """
    step, saved, folder = load_saved(config.init)
    theirs, other = spec_in(saved, str(folder)), config_in(saved, str(folder))
    lines = [f"starting from {config.init}: {theirs.name}, "]
    if "trainer" in saved:
        lines[0] += f"algorithm {other.algorithm}, {step:,} steps"
    else:
        lines[0] += f"fitted by {step:,} gradient steps"
    parts = learner_in(saved)
    if parts is not None:
        _check_sizes(theirs, spec, folder)
        with restoring(folder):
            is_fit = "trainer" not in saved
            lines += _take_actor(learner, parts, other, config, folder, is_fit=is_fit)
            lines += _take_critics(learner, parts, folder)
    elif not config.init_reward:
        raise ConfigError(
            f"init: {folder} holds a fitted reward model and no policy; to start with that, set "
            "init_reward, or name a run"
        )
    if config.init_reward:
        assert reward is not None, "a run that learns no reward is refused before"
        lines.append(_take_reward(reward, saved, other, config, folder))
    elif isinstance(reward, RatioLearner):
        reward.model.move_reference(1.0)
        lines.append("reference: the policy that was taken")
    elif reward is not None:
        lines.append("reward model: not asked for (init_reward); it starts from random weights")
    if config.init_buffer:
        assert feedback is not None, "a run that learns nothing from episodes is refused before"
        place = Path(config.init)
        path = place if place.suffix == ".ckpt" else folder / "checkpoints" / checkpoint_name(step)
        lines.append(_take_buffer(feedback, as_one(saved, path), theirs, spec, config, folder))
    return lines


def _check_sizes(theirs: EnvSpec, ours: EnvSpec, folder: Path) -> None:
    """Raise `ConfigError` naming both sides unless their actors could act here."""
    there, here = sizes(theirs), sizes(ours)
    apart = [name for name in there if there[name] != here[name] and name != "state features"]
    if apart:
        raise ConfigError(
            f"init: {folder} was trained on {theirs.name} ("
            + ", ".join(f"{name}: {there[name]}" for name in apart)
            + f"), this run is on {ours.name} ("
            + ", ".join(f"{name}: {here[name]}" for name in apart)
            + "); name a run of equal sizes"
        )


def _take_actor(
    learner: Learner,
    parts: Mapping[str, Any],
    other: Config,
    config: Config,
    folder: Path,
    *,
    is_fit: bool,
) -> list[str]:
    """Load the actor and the statistics; raise `ConfigError` where the networks differ."""
    state, mine = dict(parts["actor"]), learner.actor.state_dict()
    lines = []
    own_state = {name: x for name, x in mine.items() if name.startswith(STATE_NORM)}
    if own_state and not _fits(state, own_state):
        state |= own_state
        lines.append("statistics of states: not taken, of other sizes there")
    if differences := _differences(other, config):
        raise ConfigError(
            f"init: the actor of {folder} does not fit this run's; set "
            + ", ".join(f"{name} = {value}" for name, value in differences.items())
            + " as there"
        )
    if not _fits(state, mine) or len(state) != len(mine):
        raise CheckpointError(
            f"init: the actor of {folder} has other tensors than its settings speak of; it was "
            "damaged, or made by another learner"
        )
    check_finite_weights(folder, state)
    if is_fit and OBS_COUNT in mine:
        rows = state[OBS_COUNT]
        state[OBS_COUNT] = torch.where(rows > 0, rows.clamp(min=HELD_STEPS), rows)
    learner.actor.load_state_dict(state)
    return ["actor and statistics of observations: taken", *lines]


def _differences(other: Config, config: Config) -> dict[str, Any]:
    """Return by name what shapes actors, as it is there, where it differs here."""
    names = ("encoder", "hidden_sizes", "share_parameters", "normalise_inputs", "recurrence")
    found = {
        f"network.{name}": getattr(other.network, name)
        for name in names
        if getattr(other.network, name) != getattr(config.network, name)
    }
    kinds = {other.learner.kind, config.learner.kind}
    if len(kinds) > 1 and not kinds <= {"mappo", "ippo"}:
        found["learner.kind"] = other.learner.kind
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in found.items()
    }


def _take_critics(learner: Learner, parts: Mapping[str, Any], folder: Path) -> list[str]:
    """Load every critic whose tensors have the shapes of ours."""
    critics, theirs = getattr(learner, "critics", {}), parts.get("critics", {})
    lines = []
    for name, critic in critics.items():
        if name not in theirs:
            lines.append(f"{name} critic: not taken, there is none")
        elif not _fits(theirs[name], critic.state_dict()):
            lines.append(f"{name} critic: not taken, of other sizes there")
        else:
            check_finite_weights(folder, theirs[name])
            critic.load_state_dict(theirs[name])
            lines.append(f"{name} critic: taken")
    return lines


def _take_reward(
    reward: RewardLearner, saved: Mapping[str, Any], other: Config, config: Config, folder: Path
) -> str:
    """Load the reward model and its scales; raise `ConfigError` where there is none that fits."""
    if not is_learned(saved, other):
        raise ConfigError(
            f"init_reward: {folder} (algorithm {other.algorithm}) has learned no reward model; "
            "leave init_reward out, or name a run or fit that has"
        )
    with restoring(folder):
        state = saved["trainer"]["reward"] if "trainer" in saved else saved["reward"]
        model, scales = state["model"], (state["team_scale"], state["local_scale"])
        mine = reward.model.state_dict()
        there, here = other.reward_choice, config.reward_choice
        if there.model != here.model or not _fits(model, mine) or len(model) != len(mine):
            if there.model == here.model == "policy_ratio":
                raise ConfigError(
                    f"init_reward: the policy that {folder} has fitted and its reference are not "
                    "those of this run; leave init_reward out, init takes the policy"
                )
            raise ConfigError(
                f"init_reward: the reward model {there.model} (gamma_R {there.gamma:g}) of "
                f"{folder} does not fit this run's {here.model} (gamma_R {here.gamma:g}); make the "
                "algorithm, the section reward and the environment's sizes as there"
            )
        check_finite_weights(folder, model)
        reward.inherit(model, *scales)
    return "reward model: taken"


def _take_buffer(
    feedback: FeedbackPipeline,
    saved: dict[str, Any],
    theirs: EnvSpec,
    spec: EnvSpec,
    config: Config,
    folder: Path,
) -> str:
    """Load the whole episodes and their answers; raise `ConfigError` where the buffers differ."""
    state = saved.get("trainer", {}).get("feedback", {})
    if "replay" not in state:
        raise ConfigError(
            f"init_buffer: {folder} has kept no episodes; leave init_buffer out, or name a run "
            "that learns a reward"
        )
    had, has = flat(to_dict(config_in(saved, str(folder)))), flat(to_dict(config))
    if apart := [name for name in BUFFER_SETTINGS if had[name] != has[name]]:
        raise ConfigError(
            f"init_buffer: the episodes of {folder} do not fit this run's replay buffer; set "
            + ", ".join(f"{name} = {had[name]}" for name in apart)
            + " as there"
        )
    for name in BUFFER_SPEC:
        if (there := getattr(theirs, name)) != (here := getattr(spec, name)):
            raise ConfigError(
                f"init_buffer: the episodes of {folder} are of {theirs.name} ({name}: {there}), "
                f"this run is on {spec.name} ({name}: {here}); leave init_buffer out"
            )
    ranks = feedback.ranks
    with restoring(folder):
        feedback.inherit(inherited(state, config, ranks.rank, ranks.size))
    count = len(feedback.replay.returns())
    line = f"episodes: {count:,} taken" + ("" if ranks.size == 1 else " by process 0")
    if not config.learns_from_labels:
        return line
    if config.preferences.queries_per_iteration == 0:
        return line + ", which this run's labeller judges"
    return line + f", with {len(feedback.buffer):,} answers about them"


def _fits(state: Any, mine: Mapping[str, Any]) -> bool:
    """Return whether a state has every tensor of `mine`, in its shape."""
    return isinstance(state, dict) and all(
        isinstance(state.get(name), Tensor) and state[name].shape == tensor.shape
        for name, tensor in mine.items()
        if isinstance(tensor, Tensor)
    )
