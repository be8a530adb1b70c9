"""The command ``marl evaluate``."""

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from marl.config.io import load_run_config
from marl.config.validation import Range, settings
from marl.utils.files import atomic_write, output
from marl.utils.terminal import LiteralConsole

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


@settings("--")
class Evaluate:
    """Play whole episodes with a trained team, greedy and sampled."""

    run_dir: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(name="run", metavar="RUN")]
    """Folder of the run."""
    episodes: Annotated[int, Range(1, 1e9)] = 64
    """Whole episodes."""
    num_envs: Annotated[int, Range(1, 1e6)] = 16
    """Environments in a batch."""
    seed: Annotated[int, Range(0, 2**63 - 1)] = 0
    """Seed of the episodes."""
    out: Path | None = None
    """File for every return; RUN/evaluation.json if not given."""

    trust: bool = False
    """Import the code that the run names, though it is not one that you trained on this machine."""

    def run(self) -> int:
        """Print a table of both ways to act, and write every return to a file."""
        load_run_config(self.run_dir)  # what is wrong with the folder is told at once
        from rich.progress import Progress
        from rich.table import Table

        from marl.evaluation import evaluate
        from marl.policy import load

        policy = load(self.run_dir)
        table = Table(title=f"{policy.config.env.name} after {policy.steps:,} steps")
        headings = ("acting", "mean return", "95 % interval", "episodes", *policy.spec.successes)
        for heading in headings:
            table.add_column(heading, justify="left" if heading == "acting" else "right")
        report = {}
        console = LiteralConsole(stderr=True)
        for name in ("greedy", "sampled"):
            with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
                task = bar.add_task(f"{self.episodes} episodes, {name}", total=1.0)
                result = evaluate(
                    policy,
                    greedy=name == "greedy",
                    episodes=self.episodes,
                    seed=self.seed,
                    num_envs=self.num_envs,
                    progress=partial(_advance, bar, task),
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
        LiteralConsole().print(table)
        path = self.out or self.run_dir / "evaluation.json"
        text = json.dumps({"steps": policy.steps, "seed": self.seed} | report, indent=1)
        with output(path, "name a file by --out in a folder that is there"):
            atomic_write(path, text.encode())
        print(f"written to {path}")
        return 0


def _advance(bar: "Progress", task: "TaskID", share: float) -> None:
    """Show which share of the episodes has ended."""
    bar.update(task, completed=share)
