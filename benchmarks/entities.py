"""Plain layers and attention over entities on a SMAX battle: win rates after so many steps.

    python -m benchmarks.entities --scenario 5m_vs_6m --steps 3000000 --seeds 0 1 2 \
        --out benchmarks/results/entities.md

MAPPO on the dense reward of every step (``--algorithm sparse --env.options reward_mode dense``),
with the settings of ``configs/smax_3m.toml``, so that encoders alone differ. Every run is trained
by itself, one after the other, and evaluated greedily on the same 256 battles.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch

import marl
from benchmarks import ROOT
from marl.utils.origin import commit, machine

ENCODERS = {"plain layers": "", "entities": "entities"}
EPISODES = 256


def trained(scenario: str, encoder: str, seed: int, steps: int) -> dict[str, float]:
    """Return the greedy win rate of a team after its training, and the processor's seconds."""
    settings: dict[str, Any] = {
        "env.name": f"smax/{scenario}",
        "env.options": {"reward_mode": "dense"},
        "algorithm": "sparse",
        "network.encoder": encoder,
        "seed": seed,
        "total_steps": steps,
        "threads": 1,
        "eval.every": steps,
        "eval.episodes": EPISODES,
        "eval.num_envs": EPISODES,
    }
    config = marl.load_config(ROOT / "configs/smax_3m.toml", settings)
    begun = time.process_time()
    *_, last = marl.train(config)
    won = last["evaluation/greedy_won"]
    return {"won": won, "seconds": time.process_time() - begun, "steps": last["steps"]}


def main() -> None:
    """Print a Markdown table, and write it to a file if one is given."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scenario", default="5m_vs_6m")
    parser.add_argument("--steps", type=int, default=3_000_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        f"# Encoders on smax/{options.scenario}",
        "",
        f"{options.steps:,} steps, seeds {', '.join(map(str, options.seeds))}, {EPISODES} greedy "
        f"battles each; commit {commit()}, {machine()}.",
        "",
        "| encoder | won, mean | won, each seed | processor seconds, median |",
        "| --- | --- | --- | --- |",
    ]
    for name, encoder in ENCODERS.items():
        runs = [trained(options.scenario, encoder, s, options.steps) for s in options.seeds]
        won = [run["won"] for run in runs]
        each = ", ".join(f"{share:.2f}" for share in won)
        seconds = statistics.median(run["seconds"] for run in runs)
        lines.append(f"| {name} | {statistics.mean(won):.2f} | {each} | {seconds:,.0f} |")
        print(lines[-1], flush=True)
    text = "\n".join(lines) + "\n"
    print(text)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text)


if __name__ == "__main__":
    main()
