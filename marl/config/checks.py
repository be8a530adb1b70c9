"""The range of every number, and settings that contradict each other."""

import math
from typing import TYPE_CHECKING, Any

from marl.config.errors import ConfigError
from marl.config.llm import LLM_RANGES
from marl.config.model import MODEL_RANGES
from marl.config.preferences import PreferenceConfig, TeacherConfig

if TYPE_CHECKING:
    from marl.config.whole import Config  # which calls these checks

RANGES: dict[str, tuple[float, float]] = {
    "total_steps": (1, 1e12),
    "seed": (0, 2**63 - 1),
    "threads": (1, 1024),
    "checkpoint_every": (1, 1e12),
    "keep_checkpoints": (1, 1000),
    "env.num_envs": (1, 1e6),
    "learner.rollout_steps": (1, 1e6),
    "learner.epochs": (1, 1000),
    "learner.minibatches": (1, 1e5),
    "learner.chunk_length": (1, 1e6),
    "learner.learning_rate": (0, 1),
    "learner.clip_coef": (1e-6, 1),
    "learner.value_clip": (0, 1e6),
    "learner.gamma": (0, 1),
    "learner.gae_lambda": (0, 1),
    "learner.entropy_coef": (0, 1e3),
    "learner.max_grad_norm": (1e-9, 1e9),
    "learner.local_weight": (0, 1),
    "reward.gamma": (0, 1),
    "reward.target_rate": (0, 1),
    "reward.drift_tolerance": (0, 1e6),
    "reward.alpha": (1e-9, 1e9),
    "reward.sample_steps": (1, 1e6),
    "reward.batch_episodes": (2, 1e5),
    "reward.whole_episodes": (0, 1e6),
    "reward.gradient_steps": (0, 1e5),
    "reward.env_steps_per_gradient_step": (1, 1e9),
    "reward.held_out_fall": (0, 1),
    "reward.fit_share": (0, 0.99),
    "reward.learning_rate": (0, 1),
    "reward.regularisation": (0, 1e6),
    "reward.split_regularisation": (0, 1e6),
    "reward.beta": (1e-6, 1e6),
    "reward.exponent_clip": (0.1, 50),
    "reward.expectile": (1e-6, 1 - 1e-6),
    "reward.mixer_hidden": (1, 1e5),
    "reward.max_grad_norm": (1e-9, 1e9),
    "preferences.deadline": (0, 1e9),
    "preferences.margin": (0, 1e12),
    "preferences.sharpness": (0, 1e6),
    "preferences.discount": (1e-6, 1),
    "preferences.teacher.rationality": (0, math.inf),
    "preferences.teacher.mistakes": (0, 1),
    "preferences.teacher.skip_below": (-math.inf, 1e6),
    "preferences.teacher.tie_within": (0, 1e6),
    "preferences.teacher.myopia": (0, 1),
    "preferences.queries_per_iteration": (0, 1e6),
    "preferences.max_labels": (0, 1e9),
    "preferences.committee": (1, 100),
    "preferences.candidates": (1, 1e4),
    "preferences.retire_after": (0, 1e12),
    "preferences.newest_share": (0, 1),
    "preferences.buffer_pairs": (1, 1e8),
    "preferences.holdout_every": (2, 1e6),
    "preferences.store_steps": (1, 1e10),
    "preferences.store_episodes": (2, 1e8),
    "preferences.people.filmed_copies": (1, 1e6),
    **{f"preferences.llm.{name}": limits for name, limits in LLM_RANGES.items()},
    **{f"preferences.model.{name}": limits for name, limits in MODEL_RANGES.items()},
}


def check_ranges(config: "Config") -> None:
    """Raise `ConfigError` for the first value out of its range or in conflict with another."""
    for key, (low, high) in RANGES.items():
        value: Any = config
        for part in key.split("."):
            value = getattr(value, part)
        if not low <= value <= high:
            raise ConfigError(f"{key}: got {value!r}, expected a number from {low:g} to {high:g}")
    for key, sizes in (
        ("network.hidden_sizes", config.network.hidden_sizes),
        ("reward.hidden_sizes", config.reward.hidden_sizes),
    ):
        if not sizes or min(sizes) < 1:
            raise ConfigError(f"{key}: got {sizes!r}, expected at least one positive size")
    if config.device != "cpu" and not config.device.startswith("cuda"):
        raise ConfigError(f"device: got {config.device!r}, expected cpu, cuda or cuda:N")
    if config.reward.mixer == "two_layer" and config.reward.local_form != "plain":
        raise ConfigError(
            'reward.mixer: "two_layer" has no additive split into local rewards; '
            'set reward.local_form = "plain" or reward.mixer = "linear"'
        )
    if config.reward.mixer == "two_layer" and not config.reward.shared_mixer:
        raise ConfigError(
            "reward.shared_mixer: a mixer of V's own is learned in the linear form only; "
            'set reward.shared_mixer = true or reward.mixer = "linear"'
        )
    _check_preferences(config.preferences)
    asks_policy = config.reward_gamma > 0.0 and config.reward.value_loss == "soft"
    if asks_policy and config.network.memory != "none":
        raise ConfigError(
            'reward.value_loss: "soft" asks the policy about single steps, which one with memory '
            'cannot answer; set reward.value_loss = "gumbel" or network.memory = "none"'
        )
    _check_reward_memory(config)
    if config.learner.minibatches > config.batch_rows:
        if config.network.memory == "none":
            rows = f"{config.batch_rows} steps (env.num_envs x learner.rollout_steps)"
        else:
            rows = (
                f"{config.batch_rows} chunks "
                "(env.num_envs x learner.rollout_steps / learner.chunk_length)"
            )
        raise ConfigError(
            f"learner.minibatches: got {config.learner.minibatches}, but one rollout has only "
            + rows
        )


def _check_reward_memory(config: "Config") -> None:
    """Raise `ConfigError` where the reward is to remember and cannot."""
    if config.reward.memory == "none":
        return
    if config.algorithm in ("ipl", "sl") or config.reward.model:
        which = f"reward.model = {config.reward.model!r}"
        if not config.reward.model:
            which = f"algorithm = {config.algorithm!r}"
        raise ConfigError(
            f"reward.memory: got {config.reward.memory!r}, but only the utilities of imap and slf "
            f'have a memory, and this run has {which}; set reward.memory = "none"'
        )
    if config.algorithm == "imap" and config.reward.value_loss == "soft":
        raise ConfigError(
            f'reward.memory: got {config.reward.memory!r}, but value_loss = "soft" values '
            'actions that were not taken; set reward.value_loss = "gumbel" or "expectile"'
        )


def _check_preferences(config: PreferenceConfig) -> None:
    """Raise `ConfigError` for settings that say nothing together."""
    if ("facts" in config.labellers) != bool(config.facts):
        raise ConfigError(
            f"preferences.facts: got {list(config.facts)}, but pairs are judged by "
            f'{" and ".join(config.labellers)}; "facts", as preferences.labeller or as the '
            "preferences.llm.fallback in use, needs at least one, others use none"
        )
    if ("model" in config.labellers) != bool(config.model.run):
        raise ConfigError(
            f"preferences.model.run: got {config.model.run!r}, but pairs are judged by "
            f'{" and ".join(config.labellers)}; "model" needs the folder of a run or of '
            "`marl fit-reward`, others use none"
        )
    if any(margin < 0.0 for margin in config.fact_margins):
        raise ConfigError(
            f"preferences.fact_margins: got {list(config.fact_margins)}, expected none below 0"
        )
    if config.fact_margins and len(config.fact_margins) != len(config.facts):
        raise ConfigError(
            f"preferences.fact_margins: got {len(config.fact_margins)} for {len(config.facts)} "
            "facts; give one for each, or none"
        )
    if config.teacher.myopia < 1.0 and config.labeller != "return":
        raise ConfigError(
            f"preferences.teacher.myopia: got {config.teacher.myopia}, but only "
            'preferences.labeller = "return" judges by rewards; leave it at 1'
        )
    if config.labeller == "llm" and config.queries_per_iteration == 0:
        raise ConfigError(
            "preferences.queries_per_iteration: got 0, which asks about every pair anew; a "
            "language model costs time or money, so say how many pairs an iteration"
        )
    _check_people(config)
    if config.queries_per_iteration == 0 and (
        config.query in ("disagreement", "entropy") or config.max_labels or config.retire_after
    ):
        raise ConfigError(
            "preferences.queries_per_iteration: got 0, which asks about every pair anew; a query "
            "by disagreement or entropy, max_labels and retire_after need at least 1"
        )
    if config.query == "disagreement" and config.committee < 2:
        raise ConfigError(
            f"preferences.committee: got {config.committee}; to disagree takes at least 2"
        )


def _check_people(config: PreferenceConfig) -> None:
    """Raise `ConfigError` for settings that people cannot be asked with."""
    if "people" not in config.labellers:
        return
    if config.labeller != "people":
        raise ConfigError(
            'preferences.llm.fallback: got "people", whose answers come later than a fallback\'s '
            'must; choose a rule such as "return", or set preferences.labeller = "people"'
        )
    if config.queries_per_iteration == 0:
        raise ConfigError(
            "preferences.queries_per_iteration: got 0, which asks about every pair anew; people "
            "answer a few, so say how many pairs an iteration, e.g. 1"
        )
    if config.teacher != TeacherConfig() or config.tie_break:
        raise ConfigError(
            "preferences.teacher and preferences.tie_break: people err and tie by themselves, and "
            "their answers are taken as they are; leave both at their defaults"
        )
