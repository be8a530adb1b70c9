"""Every setting: its default, its meaning, its range.

Defaults live here and nowhere else. A file in ``configs/`` holds only differences, flags override
the file, and the result is one frozen `Config`, written into the run folder and the checkpoint.
"""

from marl.config.preferences import (
    ContrastConfig,
    LlmConfig,
    ModelConfig,
    PeopleConfig,
    PreferenceConfig,
    TeacherConfig,
)
from marl.config.presets import Algorithm
from marl.config.schema import (
    Config,
    EnvConfig,
    EvalConfig,
    LearnerConfig,
    NetworkConfig,
    Option,
    RewardConfig,
)
from marl.config.validation import ConfigError

__all__ = [
    "Algorithm",
    "Config",
    "ConfigError",
    "ContrastConfig",
    "EnvConfig",
    "EvalConfig",
    "LearnerConfig",
    "LlmConfig",
    "ModelConfig",
    "NetworkConfig",
    "Option",
    "PeopleConfig",
    "PreferenceConfig",
    "RewardConfig",
    "TeacherConfig",
]
