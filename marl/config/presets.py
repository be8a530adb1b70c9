"""What the policy's reward is: source x model x loss x gamma_R, and presets of them by name.

A preset (`--algorithm`) is one row of `PRESETS`; each setting of the section ``[reward]`` with the
same name overrides its column. To add a reward model or a loss, write it in a module of its own
and name it here in one line of `REWARD_MODELS` or `REWARD_LOSSES`; a model of a user needs neither,
its import path is the setting.
"""

from dataclasses import dataclass, replace
from typing import Literal

ENTITIES = "entities"
"""Name of the encoder of lists of entities."""

Algorithm = Literal[
    "imap",
    "slf",
    "ipl",
    "sl",
    "rrd",
    "rrd_central",
    "ircr",
    "rudder",
    "arel",
    "stas",
    "tar2",
    "dpo",
    "sparse",
    "dense",
]
RewardSource = Literal["task", "hidden", "learned", "policy"]


@dataclass(frozen=True, kw_only=True)
class RewardChoice:
    """Where the policy's reward comes from and how it is learned."""

    source: RewardSource
    """Task: the environment's own. Hidden: the dense one behind a benchmark's. Learned. Policy: the
    policy is its own reward model, the log-ratio to a reference, and fitted as one."""
    model: str = ""
    """A name in `REWARD_MODELS` or an import path; empty where nothing is learned."""
    loss: str = ""
    """A name in `REWARD_LOSSES`; empty where nothing is learned."""
    gamma: float = 0.0
    """gamma_R of models with a value network V; 0 leaves V out."""

    @property
    def is_factored(self) -> bool:
        """Whether it may pay every agent a local reward; a user's model is asked when it is run."""
        entry = REWARD_MODELS.get(self.model)
        return entry.is_factored if entry else self.source == "learned"

    @property
    def is_fitted(self) -> bool:
        """Whether its loss fits anything: a reward model, or the policy itself."""
        return self.source in ("learned", "policy")

    @property
    def has_value(self) -> bool:
        """Whether its model takes gamma_R > 0."""
        return self.model in REWARD_MODELS and REWARD_MODELS[self.model].has_value

    @property
    def reads_history(self) -> bool:
        """Whether its model reads episodes whole and in order."""
        return self.model in REWARD_MODELS and REWARD_MODELS[self.model].reads_history

    @property
    def needs_labels(self) -> bool:
        """Whether its loss compares labelled pairs."""
        return self.loss in REWARD_LOSSES and REWARD_LOSSES[self.loss].needs_labels

    @property
    def needs_returns(self) -> bool:
        """Whether its loss reads the episodes' returns."""
        return self.loss in REWARD_LOSSES and REWARD_LOSSES[self.loss].needs_returns


def _learned(model: str, loss: str, gamma: float = 0.0) -> RewardChoice:
    return RewardChoice(source="learned", model=model, loss=loss, gamma=gamma)


PRESETS: dict[Algorithm, RewardChoice] = {
    "imap": _learned("factored", "preference", 0.9),
    "slf": _learned("factored", "preference"),
    "ipl": _learned("central", "preference", 0.9),
    "sl": _learned("central", "preference"),
    "rrd": _learned("factored", "regression"),
    "rrd_central": _learned("central", "regression"),
    "ircr": _learned("constant", "regression"),
    "rudder": _learned("rudder", "rudder"),
    "arel": _learned("arel", "arel"),
    "stas": _learned("stas", "regression"),
    "tar2": _learned("tar2", "tar2"),
    "dpo": RewardChoice(source="policy", model="policy_ratio", loss="preference"),
    "sparse": RewardChoice(source="task"),
    "dense": RewardChoice(source="hidden"),
}


@dataclass(frozen=True, kw_only=True)
class ModelEntry:
    """A shipped reward model; built as ``Class(spec, config, gamma, norm, generator)``."""

    path: str
    """``package.module:Class``; imported when a run needs it."""
    is_factored: bool = False
    """Whether it gives every agent a local reward."""
    has_value: bool = False
    """Whether it takes gamma_R > 0: a `marl.rewards.ValueBasedReward`."""
    reads_history: bool = False
    """Whether it reads episodes whole and in order: a `marl.rewards.SequenceReward`."""


@dataclass(frozen=True, kw_only=True)
class LossEntry:
    """A shipped loss; built as ``Class(config, max_steps)``."""

    path: str
    needs_labels: bool = False
    """Whether it compares episodes, so that pairs must be labelled."""
    needs_returns: bool = False
    """Whether it reads the episodes' returns."""
    reads_history: bool = False
    """Whether it reads episodes whole and in order, so that its model must, too."""


REWARD_MODELS: dict[str, ModelEntry] = {
    "factored": ModelEntry(
        path="marl.rewards.factored:FactoredReward", is_factored=True, has_value=True
    ),
    "central": ModelEntry(path="marl.rewards.central:CentralReward", has_value=True),
    "constant": ModelEntry(path="marl.rewards.constant:ConstantReward"),
    "rudder": ModelEntry(path="marl.rewards.rudder:RudderReward", reads_history=True),
    "arel": ModelEntry(path="marl.rewards.arel:ArelReward", reads_history=True),
    "stas": ModelEntry(path="marl.rewards.stas:StasReward", is_factored=True, reads_history=True),
    "tar2": ModelEntry(path="marl.rewards.tar2:Tar2Reward", is_factored=True, reads_history=True),
    "policy_ratio": ModelEntry(path="marl.rewards.ratio:OwnPolicyRatio", is_factored=True),
}

REWARD_LOSSES: dict[str, LossEntry] = {
    "preference": LossEntry(path="marl.rewards.losses:PreferenceLoss", needs_labels=True),
    "regression": LossEntry(path="marl.rewards.losses:RegressionLoss", needs_returns=True),
    "rudder": LossEntry(
        path="marl.rewards.rudder:RudderLoss", needs_returns=True, reads_history=True
    ),
    "arel": LossEntry(path="marl.rewards.arel:ArelLoss", needs_returns=True),
    "tar2": LossEntry(path="marl.rewards.tar2:Tar2Loss", needs_returns=True),
    "both": LossEntry(
        path="marl.rewards.losses:SumOfLosses", needs_labels=True, needs_returns=True
    ),
}


def chosen_reward(
    algorithm: Algorithm,
    *,
    source: RewardSource | Literal[""] = "",
    model: str = "",
    loss: str = "",
    gamma: float | None = None,
) -> RewardChoice:
    """Return a preset with the settings that are given, i.e. not empty, in place of its own."""
    preset = PRESETS[algorithm]
    chosen = source or preset.source
    if chosen not in ("learned", "policy"):
        return RewardChoice(source=chosen)
    if chosen == "policy" and preset.source != "policy":
        preset = PRESETS["dpo"]
    choice = replace(
        preset,
        source=chosen,
        model=model or preset.model,
        loss=loss or preset.loss,
        gamma=preset.gamma if gamma is None else gamma,
    )
    if gamma is None and not choice.has_value:
        return replace(choice, gamma=0.0)  # the preset's belongs to the model that was replaced
    return choice
