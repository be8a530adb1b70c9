"""All settings of a run."""

from dataclasses import dataclass, field
from typing import Literal

from marl.config.checks import check_ranges
from marl.config.learning import EnvConfig, LearnerConfig, NetworkConfig, RewardConfig
from marl.config.preferences import PreferenceConfig

Algorithm = Literal["imap", "ipl", "sl", "slf", "sparse", "dense"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """One run."""

    algorithm: Algorithm = "imap"
    """imap: factored implicit reward. ipl: central implicit. slf: factored explicit (gamma_R = 0).
    sl: central explicit. sparse: the task's own reward. dense: oracle on the hidden reward."""
    total_steps: int = 1_000_000
    """Environment steps, summed over copies."""
    seed: int = 0
    """The one seed; every generator derives from it."""
    device: str = "cpu"
    """Where the networks live: ``cpu`` or ``cuda``."""
    threads: int = 2
    """Threads of the physics; with 2 or more, actors and critics also learn side by side."""
    checkpoint_every: int = 200_000
    """Environment steps between checkpoints."""
    keep_checkpoints: int = 3
    """Newest checkpoints kept."""
    diagnose_hidden: bool = False
    """Benchmarks only: report how the learned reward correlates with the hidden one."""
    env: EnvConfig = field(default_factory=EnvConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    preferences: PreferenceConfig = field(default_factory=PreferenceConfig)

    def __post_init__(self) -> None:
        check_ranges(self)

    @property
    def learns_reward(self) -> bool:
        """Whether the policy is trained on a reward learned from preferences."""
        return self.algorithm in ("imap", "ipl", "slf", "sl")

    @property
    def asks_people(self) -> bool:
        """Whether people label, on the page of ``marl label``."""
        return self.learns_reward and self.preferences.labeller == "people"

    @property
    def is_factored(self) -> bool:
        """Whether the learned reward splits into local ones."""
        return self.algorithm in ("imap", "slf") or bool(self.reward.model)

    @property
    def sees_hidden(self) -> bool:
        """Whether anything may see the hidden reward: an oracle, a diagnosis, a myopic teacher."""
        myopic = self.learns_reward and self.preferences.teacher.myopia < 1.0
        return self.algorithm == "dense" or self.diagnose_hidden or myopic

    @property
    def reward_gamma(self) -> float:
        """gamma_R; explicit rewards are the implicit ones at 0."""
        return self.reward.gamma if self.algorithm in ("imap", "ipl") else 0.0

    @property
    def batch_steps(self) -> int:
        """Environment steps in one iteration."""
        return self.env.num_envs * self.learner.rollout_steps

    @property
    def batch_rows(self) -> int:
        """Rows of one iteration's minibatches: steps or, with memory, chunks of steps."""
        if self.network.memory == "none":
            return self.batch_steps
        return self.env.num_envs * -(-self.learner.rollout_steps // self.learner.chunk_length)

    @property
    def num_iterations(self) -> int:
        """Iterations needed to reach `total_steps`."""
        return -(-self.total_steps // self.batch_steps)
