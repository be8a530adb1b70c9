"""The command ``marl export-policy``."""

from pathlib import Path
from typing import Annotated

import tyro
from rich.text import Text

from marl.commands.inspection import check_plays
from marl.config.validation import settings
from marl.utils.text import LiteralConsole


@settings("--")
class ExportPolicy:
    """Write a trained team as a file that runs without this package (ONNX or torch.export).

    It holds the networks and the normalisation of observations, and is compared with the run's
    policy before it is kept.
    """

    run_dir: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(name="run", metavar="RUN")]
    """Folder of the run; its newest checkpoint is read."""
    out: Path | None = None
    """File to write: .onnx, which needs the extra export, or .pt2, read by torch.export.load;
    RUN/policy.onnx if not given."""
    best: bool = False
    """Take the checkpoint that was best in the evaluations while training (eval.every)."""
    trust: bool = False
    """Import the code that the run names, though it is not one that you trained on this machine."""

    def run(self) -> int:
        """Write the file, and say what it takes and returns."""
        from rich.table import Table

        check_plays(self.run_dir)  # what is wrong with the folder is told at once
        from marl.export import export_policy
        from marl.policy import load
        from marl.utils.devices import single_threaded_operations

        single_threaded_operations()
        policy = load(self.run_dir, best=self.best)
        made = export_policy(policy, self.out or self.run_dir / "policy.onnx")
        table = Table(title=f"{policy.config.env.name} {policy.trained}")
        for heading in ("", "name", "type", "shape", "what it is"):
            table.add_column(heading)
        for kind, ports in (("input", made.inputs), ("output", made.outputs)):
            for port in ports:
                shape = ", ".join(["teams", *map(str, port.shape)])
                table.add_row(kind, port.name, port.kind, f"({shape})", port.meaning)
        console = LiteralConsole()
        console.print(table)
        names = ", ".join(made.agents)
        console.print(Text(f"agents, in the order of their axis: {names}"), soft_wrap=True)
        print(f"written to {made.path}; it differs from the run's by at most {made.difference:.1g}")
        return 0
