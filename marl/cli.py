"""The command ``marl``."""

import argparse
import dataclasses
import difflib
import json
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from envs import EnvError, check_env, open_env
from envs.adapters.team_env import TeamEnv
from envs.registry import FAMILIES
from envs.sparse import SparseRewards, unwrapped
from marl import __version__
from marl.commands.dataset import export, fit
from marl.commands.label import label
from marl.commands.labels import labels
from marl.commands.train import config_of, resume_command, train_command
from marl.commands.watch import watch
from marl.config import ConfigError, Option
from marl.evaluation import evaluate
from marl.nn.layers import NonFiniteError
from marl.policy import load
from marl.preferences.dataset import DatasetError
from marl.utils.checkpoint import CheckpointError
from marl.utils.plugins import PluginError

USER_ERRORS = (
    ConfigError,
    EnvError,
    PluginError,
    CheckpointError,
    NonFiniteError,
    DatasetError,
)
"""Errors whose message says what to do; anything else shows a traceback."""


@dataclass(frozen=True, kw_only=True)
class CheckCommand:
    """Test an environment of your own against the contract, in plain words."""

    env: tyro.conf.Positional[str]
    """Import path package.module:attribute, or a shipped name."""
    options: Annotated[dict[str, Option], tyro.conf.arg(name="env.options")] = dataclasses.field(
        default_factory=dict
    )
    """Keyword arguments of the environment, as `marl train` takes them."""
    num_envs: int = 4
    """Copies."""
    steps: int = 200
    """Steps to play."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; the exit status is 0, 1 on an error, 2 on a wrong command."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_overview())
        return
    if arguments[0] == "--version":
        print(f"prefmarl {__version__}")
        return
    name, *rest = arguments
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"; did you mean `marl {near[0]}`?" if near else ""
        print(f"marl: no command {name!r}{hint}\n\n{_overview()}", file=sys.stderr)
        sys.exit(2)
    warnings.formatwarning = _formatted_warning
    try:
        status = COMMANDS[name](rest)
    except USER_ERRORS as error:
        lines = "\n".join([str(error), *getattr(error, "__notes__", [])])
        Console(stderr=True, soft_wrap=True).print(Text("error: ", "bold red") + Text(lines))
        status = 1
    sys.exit(status)


def evaluate_command(arguments: list[str]) -> int:
    """Play whole episodes with a trained team, greedy and sampled."""
    parser = _parser("evaluate", evaluate_command)
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("--episodes", type=int, default=64, help="whole episodes (default 64)")
    parser.add_argument("--num-envs", type=int, default=16, help="copies (default 16)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the episodes (default 0)")
    options = parser.parse_args(arguments)
    if options.episodes < 1 or options.num_envs < 1:
        parser.error("--episodes and --num-envs must be at least 1")
    config_of(options.run)
    policy = load(options.run)
    table = Table(title=f"{policy.config.env.name} after {policy.steps:,} steps")
    headings = ("acting", "mean return", "95 % interval", "episodes", *policy.spec.successes)
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "acting" else "right")
    report = {}
    for name in ("greedy", "sampled"):
        result = evaluate(
            policy,
            greedy=name == "greedy",
            episodes=options.episodes,
            seed=options.seed,
            num_envs=options.num_envs,
        )
        interval = f"{result.low:.2f} to {result.high:.2f}"
        rates = [f"{result.facts[success]:.0%}" for success in policy.spec.successes]
        table.add_row(name, f"{result.mean:.2f}", interval, str(len(result.returns)), *rates)
        report[name] = {
            "mean": result.mean,
            "interval": [result.low, result.high],
            "facts": result.facts,
            "returns": result.returns.tolist(),
        }
    Console().print(table)
    path = options.run / "evaluation.json"
    path.write_text(json.dumps({"steps": policy.steps, "seed": options.seed} | report, indent=1))
    print(f"written to {path}")
    return 0


def watch_command(arguments: list[str]) -> int:
    """Film an episode of a trained team, its learned rewards beside the agents."""
    return watch(arguments, watch_command.__doc__)


def label_command(arguments: list[str]) -> int:
    """Compare episodes yourself, on a page in your browser."""
    return label(arguments, label_command.__doc__)


def labels_command(arguments: list[str]) -> int:
    """Audit what the labeller of a run answered: how often, how biased, how right, at what cost."""
    return labels(arguments, labels_command.__doc__)


def export_command(arguments: list[str]) -> int:
    """Write a run's episodes and answers as a preference dataset."""
    return export(arguments, export_command.__doc__)


def fit_reward_command(arguments: list[str]) -> int:
    """Fit a reward model to a preference dataset; held-out accuracy and calibration."""
    return fit(arguments, fit_reward_command.__doc__)


def check_command(arguments: list[str]) -> int:
    """Test an environment of your own against the contract, in plain words."""
    command = tyro.cli(CheckCommand, prog="marl check", args=arguments)
    with open_env(command.env, command.num_envs, **command.options) as env:
        copies = unwrapped(env)
        if isinstance(copies, TeamEnv) and "workers" not in command.options:
            copies.workers = max(copies.workers, 1)  # where one that hangs is noticed
        problems = check_env(env, steps=command.steps)
    for problem in problems:
        print(f"- {problem}")
    faults = len([p for p in problems if not p.startswith("warning: ")])
    print(f"{command.env}: {faults} faults, {len(problems) - faults} warnings")
    if not faults:
        options = dict(command.options)
        if not isinstance(env, SparseRewards):  # it pays as it goes, or may
            options.setdefault("reward_mode", "episodic")
        settings = " ".join(f"{key} {value}" for key, value in options.items())
        settings = f" --env.options {settings}" if settings else ""
        print(f"it keeps the contract; train with: marl train --env.name {command.env}{settings}")
    return 1 if faults else 0


def envs_command(arguments: list[str]) -> int:
    """List what there is to train in, and what can be installed with which extra."""
    _parser("envs", envs_command).parse_args(arguments)
    console = Console(soft_wrap=True, highlight=False)
    missing = {prefix: family for prefix, family in FAMILIES.items() if not family.is_installed}
    for prefix, family in FAMILIES.items():
        if prefix not in missing:
            console.print(Text(f"{prefix}", "bold") + Text(f": {family.summary}"))
            names = [f"{prefix}/{member}" if member else prefix for member in family.members()]
            console.print("".join(f"  {name}\n" for name in names), end="", markup=False)
    for prefix, family in missing.items():
        console.print(Text(f"{prefix}", "bold") + Text(f": {family.summary}"))
        console.print(f"  not installed: {family.how_to_install}", markup=False)
    console.print(Text("your own", "bold") + Text(": --env.name my_envs:two_keys"))
    console.print("  any import path; `marl check my_envs:two_keys` says what is wrong with it")
    console.print(
        "  or a PettingZoo ParallelEnv, e.g. mpe2.simple_spread_v3:parallel_env (extra mpe2)"
    )
    return 0


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": train_command,
    "resume": resume_command,
    "evaluate": evaluate_command,
    "watch": watch_command,
    "label": label_command,
    "export": export_command,
    "fit-reward": fit_reward_command,
    "labels": labels_command,
    "check": check_command,
    "envs": envs_command,
}


def _formatted_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
) -> str:
    """Return a warning as a user reads it: what is wrong, not where the code says so."""
    return f"warning: {message}\n"


def _overview() -> str:
    lines = ["Train teams whose reward comes only at the end.", "", "usage: marl COMMAND ...", ""]
    for name, command in COMMANDS.items():
        lines.append(f"  {name:<12}{(command.__doc__ or '').strip()}")
    lines += ["", "`marl COMMAND --help` explains one; `marl --version` prints the version."]
    return "\n".join(lines)


def _parser(name: str, command: Callable[[list[str]], int]) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(prog=f"marl {name}", description=command.__doc__)
