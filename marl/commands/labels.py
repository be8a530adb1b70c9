"""The command ``marl labels``."""

import json
from pathlib import Path
from typing import Annotated

import tyro

from marl.config.io import load_run_config
from marl.config.validation import Range, settings


@settings("--")
class Labels:
    """Audit what the labeller of a run answered: how often, how biased, how right, at what cost.

    Shares stand with their 95 % intervals. Nothing is asked of a language model, and its answer
    cache is only read, also while the run goes on.
    """

    run_dir: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(name="run", metavar="RUN")]
    """Folder of the run."""
    json: bool = False
    """Print JSON, and write no page unless --out is given."""
    out: Path | None = None
    """The page to write; RUN/labels.html if not given."""
    cache: Path | None = None
    """The language model's answers, if not where the settings say."""
    most: Annotated[int, Range(0, 10_000)] = 8
    """Surprising pairs of each kind."""
    ask_again: bool = False
    """Ask a labeller of your own, which leaves no answers, about the kept episodes."""
    skip_damaged: bool = False
    """Leave damaged answers and episodes of people out."""

    trust: bool = False
    """Import the code that the run names, though it is not one that you trained on this machine."""

    def run(self) -> int:
        """Print the audit and write its page."""
        load_run_config(self.run_dir)  # what is wrong with the folder is told at once
        from marl.reports.audit import audit, show, to_json
        from marl.reports.audit_html import page
        from marl.utils.files import atomic_write, output
        from marl.utils.terminal import LiteralConsole

        report = audit(
            self.run_dir,
            cache=self.cache,
            ask_again=self.ask_again,
            skip_damaged=self.skip_damaged,
        )
        path = self.out
        if self.json:
            print(json.dumps(to_json(report, self.most), indent=1, allow_nan=False))
        else:
            show(report, LiteralConsole())
            path = path or self.run_dir / "labels.html"
        if path is not None:
            with output(path, "name a file by --out in a folder that is there"):
                atomic_write(path, page(report, self.most).encode())
        if path is not None and not self.json:
            print(f"the most surprising pairs are in {path}")
        return 0
