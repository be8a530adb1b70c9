"""The commands ``marl envs``, what there is to train in, and ``marl check``, for your own."""

from dataclasses import field, replace
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.text import Text

from marl.config import Option
from marl.config.validation import Range, settings
from marl.utils.text import LiteralConsole

if TYPE_CHECKING:
    from envs import EnvSpec, VecEnv


@settings("--")
class Envs:
    """List what there is to train in, and what can be installed with which extra."""

    def run(self) -> int:
        """Print the list."""
        from envs.registry import FAMILIES

        console = LiteralConsole()
        missing = {prefix: family for prefix, family in FAMILIES.items() if not family.is_installed}
        for prefix, family in FAMILIES.items():
            if prefix not in missing:
                console.print(Text(prefix, "bold") + Text(f": {family.summary}"), soft_wrap=True)
                for member in family.members():
                    console.print(f"  {prefix}/{member}" if member else f"  {prefix}")
        for prefix, family in missing.items():
            console.print(Text(prefix, "bold") + Text(f": {family.summary}"), soft_wrap=True)
            console.print(f"  not installed: {family.how_to_install}", soft_wrap=True)
        console.print(Text("your own", "bold") + Text(": --env.name my_envs:two_keys"))
        console.print(
            "  any import path; `marl check my_envs:two_keys` says what is wrong with it\n"
            "  or a PettingZoo ParallelEnv, e.g. mpe2.simple_spread_v3:parallel_env (extra mpe2)",
            soft_wrap=True,
        )
        return 0


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
    steps: Annotated[int, Range(1, 1e9)] | None = None
    """Steps to play; if not given 200, or fewer where those would take too long."""

    def run(self) -> int:
        """Print what is wrong; return 1 if anything keeps the environment from being trained in."""
        from envs import open_env
        from envs.adapters.team_env import TeamEnv
        from envs.sparse import SparseRewards, unwrapped

        with open_env(self.env, self.num_envs, **self.options) as env:
            inner = unwrapped(env)
            if isinstance(inner, TeamEnv) and "workers" not in self.options:
                inner.workers = max(inner.workers, 1)  # where one that hangs is noticed
            problems = self._checked(env)
        for problem in problems:
            print(f"- {problem}")
        faults = len([p for p in problems if not p.startswith("warning: ")])
        print(f"{self.env}: {faults} faults, {len(problems) - faults} warnings")
        flags, unfit = fitting_flags(env.spec) if not faults else ("", "")
        if unfit:
            print(f"it keeps the contract, but {unfit}")
        elif not faults:
            options = dict(self.options)
            if not isinstance(env, SparseRewards):  # it pays as it goes, or may
                options.setdefault("reward_mode", "episodic")
            given = " ".join(f"{key} {value}" for key, value in options.items())
            given = f" --env.options {given}" if given else ""
            keeps = f"it keeps the contract{', in less memory' if flags else ''}; train with"
            print(f"{keeps}: marl train --env.name {self.env}{given}{flags}")
        return 1 if faults or unfit else 0

    def _checked(self, env: "VecEnv") -> list[str]:
        """Return what is wrong, after showing what is looked at."""
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        from envs import check_env

        console = LiteralConsole(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        with Progress(
            *columns, console=console, transient=True, disable=not console.is_terminal
        ) as bar:
            task = bar.add_task("", total=1.0)

            def progress(doing: str, share: float) -> None:
                bar.update(task, description=doing, completed=share)

            return check_env(env, steps=self.steps, progress=progress)


def fitting_flags(spec: "EnvSpec") -> tuple[str, str]:
    """Return the flags with which training fits into memory, and why it does with none of them.

    Both are empty where the default settings fit. Else fewer environments with shorter rollouts are
    tried, and a replay buffer that holds a few times what it must.
    """
    from marl.config import ConfigError
    from marl.config.io import load_config
    from marl.utils.memory_check import check_memory

    default = load_config()
    unfit, tried = "", [""]
    for num_envs in (16, 8, 4, 2, 1):
        for rollout_steps in (125, 50):
            for times in (4, 1):
                replay_steps = times * num_envs * (spec.max_steps + 2 * rollout_steps)
                if replay_steps < default.preferences.replay_steps:
                    tried.append(
                        f" --env.num-envs {num_envs} --learner.rollout-steps {rollout_steps} "
                        f"--preferences.replay-steps {replay_steps} "
                        "--preferences.replay-episodes 256"
                    )
    for flags in tried:
        words = flags.split()
        named = dict(zip(words[::2], map(int, words[1::2]), strict=True))
        overrides = {key.removeprefix("--").replace("-", "_"): v for key, v in named.items()}
        config = load_config(overrides=overrides)
        try:
            check_memory(config, replace(spec, num_envs=config.env.num_envs))
        except ConfigError as error:
            unfit = unfit or str(error)
        else:
            return flags, ""
    return "", unfit
