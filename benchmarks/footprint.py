"""Memory and checkpoint of the default run: resident MiB, MiB on disk, seconds to write.

python -m benchmarks.footprint --steps 300000
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from marl import Trainer, load_config
from marl.recorder import save_trainer
from marl.utils.origin import commit, machine


def main() -> None:
    """Train for some steps, write the checkpoint several times and print a table's row."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", type=Path, help="settings; without: the defaults")
    parser.add_argument("--steps", type=int, default=300_000)
    parser.add_argument("--checkpoints", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    trainer = Trainer(load_config(options.config, {"total_steps": options.steps}))
    metrics: dict[str, float] = {}
    while trainer.steps < options.steps:
        metrics = trainer.iterate()
    seconds, size = [], 0
    with tempfile.TemporaryDirectory() as name:
        for _ in range(options.checkpoints):
            began = time.perf_counter()
            save_trainer(trainer, Path(name))
            seconds.append(time.perf_counter() - began)
        files = [path for path in Path(name).rglob("step_*") if path.is_file()]
        size = max(path.stat().st_size for path in files)
    print(f"{machine()}; commit {commit()}; {trainer.steps:,} steps\n")
    print("| resident MiB | checkpoint MiB | seconds to write it, median |")
    print("| --- | --- | --- |")
    resident = metrics["memory/resident_mib"]
    print(f"| {resident:.0f} | {size / 2**20:.1f} | {statistics.median(seconds):.2f} |")


if __name__ == "__main__":
    main()
