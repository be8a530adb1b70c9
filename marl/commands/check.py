"""The command ``marl check``."""

from dataclasses import field, replace
from typing import TYPE_CHECKING, Annotated

import tyro

from marl.config import Option
from marl.config.validation import Range, settings

if TYPE_CHECKING:
    from envs import EnvSpec


@settings("--")
class Check:
    """Test an environment of your own against the contract, in plain words."""

    env: tyro.conf.Positional[str]
    """Import path package.module:attribute, or a shipped name."""
    options: Annotated[dict[str, Option], tyro.conf.arg(name="env.options")] = field(
        default_factory=dict
    )
    """Keyword arguments of the environment, as `marl train` takes them."""
    num_envs: Annotated[int, Range(1, 1e6)] = 4
    """Environments in a batch."""
    steps: Annotated[int, Range(1, 1e9)] = 200
    """Steps to play."""

    def run(self) -> int:
        """Print what is wrong; return 1 if anything keeps the environment from being trained in."""
        from envs import check_env, open_env
        from envs.adapters.team_env import TeamEnv
        from envs.sparse import SparseRewards, unwrapped

        with open_env(self.env, self.num_envs, **self.options) as env:
            inner = unwrapped(env)
            if isinstance(inner, TeamEnv) and "workers" not in self.options:
                inner.workers = max(inner.workers, 1)  # where one that hangs is noticed
            problems = check_env(env, steps=self.steps)
        for problem in problems:
            print(f"- {problem}")
        faults = len([p for p in problems if not p.startswith("warning: ")])
        print(f"{self.env}: {faults} faults, {len(problems) - faults} warnings")
        if unfit := self._memory_fault(env.spec) if not faults else "":
            print(f"it keeps the contract, but {unfit}")
        elif not faults:
            options = dict(self.options)
            if not isinstance(env, SparseRewards):  # it pays as it goes, or may
                options.setdefault("reward_mode", "episodic")
            given = " ".join(f"{key} {value}" for key, value in options.items())
            given = f" --env.options {given}" if given else ""
            print(f"it keeps the contract; train with: marl train --env.name {self.env}{given}")
        return 1 if faults or unfit else 0

    def _memory_fault(self, spec: "EnvSpec") -> str:
        """Return why training with the default settings needs too much memory; empty if not."""
        from marl.config import ConfigError
        from marl.config.io import load_config
        from marl.utils.memory_check import check_memory

        config = load_config()
        try:
            check_memory(config, replace(spec, num_envs=config.env.num_envs))
        except ConfigError as error:
            return str(error)
        return ""
