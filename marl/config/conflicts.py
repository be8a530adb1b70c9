"""Settings that contradict each other, each with what to set instead."""

import difflib
import re
from typing import TYPE_CHECKING

from marl.config.preferences import LABELLERS, PreferenceConfig
from marl.config.presets import REWARD_LOSSES, REWARD_MODELS
from marl.config.validation import ConfigError

if TYPE_CHECKING:
    from marl.config.schema import Config


def check_conflicts(config: "Config") -> None:
    """Raise `ConfigError` for the first setting in conflict with another."""
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", config.device):
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
    _check_reward(config)
    _check_init(config)
    for name in ("patience", "film_every"):
        if (value := getattr(config.eval, name)) and not config.eval.every:
            raise ConfigError(
                f"eval.{name}: got {value}, but eval.every is 0, so that nothing is evaluated; set "
                "eval.every"
            )
    asks_policy = config.reward_gamma > 0.0 and config.reward.value_loss == "soft"
    if asks_policy and config.network.recurrence != "none":
        raise ConfigError(
            'reward.value_loss: "soft" asks the policy about single steps, which a recurrent '
            'one cannot answer; set reward.value_loss = "gumbel" or network.recurrence = "none"'
        )
    if config.learner.minibatches > config.batch_rows:
        if config.network.recurrence == "none":
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


def _check_reward(config: "Config") -> None:
    """Raise `ConfigError` for settings of the reward that contradict each other."""
    asked, choice = config.reward, config.reward_choice
    if choice.source == "policy":
        _check_policy_source(config)
    if not choice.is_fitted:
        for name in ("model", "loss", "calibration"):
            if value := getattr(asked, name):
                raise ConfigError(
                    f"reward.{name}: got {value!r}, but with algorithm = {config.algorithm!r} the "
                    f"policy's reward is the {choice.source} one and none is learned; leave it out "
                    'or set reward.source = "learned"'
                )
        return
    for name, value, known in (
        ("model", choice.model, REWARD_MODELS),
        ("loss", choice.loss, REWARD_LOSSES),
    ):
        is_path = name == "model" and ":" in value
        if value not in known and not is_path:
            near = difflib.get_close_matches(value, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            paths = ", or an import path package.module:Class" if name == "model" else ""
            raise ConfigError(
                f"reward.{name}: got {value!r}, expected one of {', '.join(known)}{paths}{hint}"
            )
    if choice.gamma > 0.0 and not choice.has_value:
        raise ConfigError(
            f"reward.gamma: got {choice.gamma:g}, but reward.model = {choice.model!r} has no value "
            "network V to discount; leave it out or set it to 0"
        )
    if choice.model == "constant" and choice.loss != "regression":
        raise ConfigError(
            f'reward.loss: got {choice.loss!r}, but reward.model = "constant" pays returns and '
            'learns nothing from labels; set reward.loss = "regression"'
        )
    _check_calibration(config)
    if choice.model == "tar2" and not choice.needs_returns:
        raise ConfigError(
            f'reward.loss: got {choice.loss!r}, but reward.model = "tar2" pays returns, which it '
            'does not read; set reward.loss = "tar2"'
        )
    loss = REWARD_LOSSES[choice.loss]
    if loss.reads_history and not choice.reads_history:
        raise ConfigError(
            f"reward.loss: got {choice.loss!r}, which reads episodes in order, but reward.model = "
            f'{choice.model!r} reads single steps; set reward.loss = "regression"'
        )
    if config.learns_from_returns and config.preferences.teacher.myopia < 1.0:
        by = f"reward.loss = {choice.loss!r}" if choice.needs_returns else "reward.calibration"
        raise ConfigError(
            f"preferences.teacher.myopia: got {config.preferences.teacher.myopia}, but with "
            f"{by} the hidden rewards that the teacher sees would be "
            "learned from; leave it at 1"
        )
    if asked.unbiased_regression and asked.sample_steps < 2:
        raise ConfigError(
            "reward.sample_steps: got 1, but reward.unbiased_regression estimates a variance; it "
            "takes at least 2"
        )
    _check_recurrent_reward(config)
    _check_value_as_critic(config)


def _check_value_as_critic(config: "Config") -> None:
    """Raise `ConfigError` where the reward has no V that could take the critics' place."""
    asked, choice = config.reward, config.reward_choice
    if not asked.value_as_critic:
        return
    for wrong, has, to_do in (
        (choice.model != "factored", f"reward.model = {choice.model!r}", 'set algorithm = "imap"'),
        (choice.gamma == 0.0, "gamma_R = 0", 'set algorithm = "imap"'),
        (asked.mixer != "linear", f"reward.mixer = {asked.mixer!r}", 'set it to "linear"'),
        (not asked.shared_mixer, "reward.shared_mixer = false", "leave it out"),
        (asked.recurrence != "none", f"reward.recurrence = {asked.recurrence!r}", "leave it out"),
    ):
        if wrong:
            raise ConfigError(
                "reward.value_as_critic: got True, which takes w_i (q_i - v_i) of a factored "
                f"reward with one linear mixer and no memory, but this run has {has}; {to_do}"
            )


def _check_recurrent_reward(config: "Config") -> None:
    """Raise `ConfigError` for a recurrent reward that there is not, or that its V cannot have."""
    asked, choice = config.reward, config.reward_choice
    if asked.recurrence != "none" and choice.model not in ("factored", "policy_ratio"):
        raise ConfigError(
            f'reward.recurrence: got {asked.recurrence!r}, but only reward.model = "factored" and '
            f'"policy_ratio" can be recurrent, and this run has {choice.model!r} (algorithm = '
            f'{config.algorithm!r}); set reward.recurrence = "none"'
        )
    if asked.recurrence != "none" and choice.gamma > 0.0 and asked.value_loss == "soft":
        raise ConfigError(
            f'reward.recurrence: got {asked.recurrence!r}, but value_loss = "soft" '
            'values actions that were not taken; set reward.value_loss = "gumbel" or "expectile"'
        )


def _check_calibration(config: "Config") -> None:
    """Raise `ConfigError` for weights of a reward's loss that leave nothing to fit."""
    asked, choice = config.reward, config.reward_choice
    if asked.calibration > 0.0 and choice.model == "constant":
        raise ConfigError(
            f'reward.calibration: got {asked.calibration:g}, but reward.model = "constant" fits '
            "nothing; leave it at 0"
        )
    if asked.calibration > 0.0 and asked.calibrate_to == "label" and not choice.needs_labels:
        raise ConfigError(
            f'reward.calibrate_to: got "label", but reward.loss = {choice.loss!r} uses no labels; '
            'set reward.calibrate_to = "return"'
        )
    if asked.preference_weight == 0.0 and choice.loss == "preference" and not asked.calibration:
        raise ConfigError(
            "reward.preference_weight: got 0, which leaves nothing to fit; set reward.calibration, "
            'or reward.loss = "regression"'
        )


def _check_policy_source(config: "Config") -> None:
    """Raise `ConfigError` for settings that do nothing where preferences train the policy."""
    asked, where = config.reward, f"algorithm = {config.algorithm!r}"
    if config.algorithm != "dpo":
        where = 'reward.source = "policy"'
    if asked.model not in ("", "policy_ratio"):
        raise ConfigError(
            f"reward.model: got {asked.model!r}, but with {where} the policy is its own reward "
            'model; leave it out or set reward.source = "learned"'
        )
    if asked.recurrence != "none":
        raise ConfigError(
            f"reward.recurrence: got {asked.recurrence!r}, but with {where} the policy is its own "
            "reward model; set network.recurrence"
        )
    if config.learner.kind not in ("mappo", "ippo"):
        raise ConfigError(
            f"learner.kind: got {config.learner.kind!r}, but with {where} preferences train the "
            "policy, and no learner; leave it out"
        )
    if config.preferences.query in ("disagreement", "entropy"):
        raise ConfigError(
            f"preferences.query: got {config.preferences.query!r}, which asks an ensemble of "
            f"reward models, but with {where} the policy is its own; choose another one"
        )


def _check_init(config: "Config") -> None:
    """Raise `ConfigError` where there are no episodes or reward model to start with."""
    if config.init_buffer:
        _check_init_buffer(config)
    if not config.init_reward:
        return
    if not config.init:
        raise ConfigError(
            "init_reward: got True, but init names no run or fit whose reward model to start with; "
            "set init, or leave init_reward out"
        )
    if not config.learns_reward or config.reward_choice.model == "constant":
        raise ConfigError(
            f"init_reward: got True, but with algorithm = {config.algorithm!r} no reward model is "
            "fitted; leave it out"
        )


def _check_init_buffer(config: "Config") -> None:
    """Raise `ConfigError` where there are no episodes to start with, or nothing reads them."""
    if not config.init:
        raise ConfigError(
            "init_buffer: got True, but init names no run whose episodes to start with; set init, "
            "or leave init_buffer out"
        )
    if not config.learns_reward:
        raise ConfigError(
            f"init_buffer: got True, but with algorithm = {config.algorithm!r} nothing is learned "
            "from episodes kept; leave it out"
        )
    if config.asks_people:
        raise ConfigError(
            'init_buffer: got True, but preferences.labeller = "people" are shown films, which '
            "another run's episodes do not have here; leave it out"
        )


def _check_preferences(config: PreferenceConfig) -> None:
    """Raise `ConfigError` for settings of labellers that contradict each other."""
    for setting, name in zip(("labeller", "llm.fallback"), config.labellers, strict=False):
        if (name or setting == "labeller") and ":" not in name and name not in LABELLERS:
            known = ", ".join(LABELLERS)
            near = difflib.get_close_matches(name, LABELLERS, n=1)
            suggestion = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(
                f"preferences.{setting}: got {name!r}, expected one of {known}, or an import path "
                f"such as my_labels:my_function{suggestion}"
            )
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
    given = [bool(place) for place in (config.contrast.before, config.contrast.after)]
    if given != ["contrast" in config.labellers] * 2:
        raise ConfigError(
            f"preferences.contrast: got before = {config.contrast.before!r} and after = "
            f"{config.contrast.after!r}, but pairs are judged by "
            f'{" and ".join(config.labellers)}; "contrast" needs both, others use none'
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
            "by disagreement or entropy, max_labels and retire_after need at least 1; set it as "
            "well, e.g. --preferences.queries-per-iteration 4"
        )
    if config.query == "disagreement" and config.ensemble_size < 2:
        raise ConfigError(
            f"preferences.ensemble_size: got {config.ensemble_size}; to disagree takes at least 2"
        )


def _check_people(config: PreferenceConfig) -> None:
    """Raise `ConfigError` for settings in conflict with the labeller ``people``."""
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
    if config.teacher != type(config.teacher)() or config.tie_break:
        raise ConfigError(
            "preferences.teacher and preferences.tie_break: people err and tie by themselves, and "
            "their answers are taken as they are; leave both at their defaults"
        )
