"""Every setting: its default, its meaning, its range.

Defaults live here and nowhere else. A file in ``configs/`` holds only differences, flags override
the file, and the result is one frozen `Config`, written into the run folder and the checkpoint.
"""

from marl.config.errors import ConfigError
from marl.config.learning import EnvConfig, LearnerConfig, NetworkConfig, Option, RewardConfig
from marl.config.llm import LlmConfig
from marl.config.model import ModelConfig
from marl.config.preferences import PeopleConfig, PreferenceConfig, TeacherConfig
from marl.config.whole import Algorithm, Config

__all__ = [
    "Algorithm",
    "Config",
    "ConfigError",
    "EnvConfig",
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
