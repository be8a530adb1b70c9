"""What runs: the same four commands in environments of many packages, each with a small budget.

Every row of `environments.toml` is checked, trained, evaluated and filmed by the commands of
`marl`, in a process of its own that is ended after ten minutes, and becomes a small file, so that
the next call goes on where this one was stopped; `--again NAME` repeats a row. The table says what
failed and why. Install the extras mpe2, sisl, lbforaging, rware, smax, jumanji and vmas, and by
hand what you like of brax magent2 frondori-kitchen cooperative-marl-labs multigrid dsse pogema::

    python -m benchmarks.environments

Learned: whether the mean return of 32 episodes of the trained team, its actions sampled, lies above
that of random legal actions by more than two standard errors of the difference. Training sees what
the environment pays in every step (algorithm ``sparse``, ``reward_mode dense``), in one seed.
"""

import argparse
import json
import subprocess
import sys
import time
import tomllib
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from importlib.metadata import PackageNotFoundError, version
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks import ROOT
from marl.utils.files import atomic_write
from marl.utils.origin import commit, machine

ROWS = ROOT / "benchmarks" / "environments.toml"
RESULTS = ROOT / "benchmarks" / "results"
SECONDS = 600
EPISODES = 32


def rows() -> list[dict[str, Any]]:
    """Return all rows, with what they leave out filled in."""
    usual = {"options": {}, "steps": 20_000, "envs": 8}
    return [usual | row for row in tomllib.loads(ROWS.read_text())["row"]]


def cell_path(row: dict[str, Any], folder: Path) -> Path:
    """Return where the result of a row is kept."""
    return folder / (row["name"].replace("/", "__").replace(":", "--") + ".json")


def command(*arguments: str) -> str:
    """Run a command of `marl`; return "yes", or the last line that it printed."""
    from marl.cli import main

    out = StringIO()
    with ExitStack() as stack:
        stack.enter_context(redirect_stdout(out))
        stack.enter_context(redirect_stderr(out))
        try:
            main(list(arguments))
        except SystemExit as end:
            status = end.code
    lines = [line for line in out.getvalue().splitlines() if line.strip()]
    faults = [line for line in lines if line.startswith(("- ", "error: "))] or lines[-1:]
    return "yes" if not status else faults[0].removeprefix("- ").removeprefix("error: ")


def random_returns(row: dict[str, Any]) -> Any:
    """Return the returns of episodes of random legal actions."""
    from envs import open_env
    from envs.rng import random_actions

    with open_env(row["name"], 8, **row["options"] | {"reward_mode": "dense"}) as env:
        draw, step, sums = np.random.default_rng(0), env.reset(0), np.zeros(8)
        returns: list[list[float]] = [[] for _ in range(8)]
        while min(map(len, returns)) < EPISODES // 8:
            step = env.step(random_actions(env.spec, draw, step.action_mask))
            sums += step.rewards
            for index in np.flatnonzero(step.terminated | step.truncated):
                returns[index].append(float(sums[index]))
                sums[index] = 0
    return np.concatenate([some[: EPISODES // 8] for some in returns])


def measure(row: dict[str, Any]) -> dict[str, Any]:
    """Return what became of one row."""
    import marl
    from marl.evaluation import evaluate

    began = time.process_time()
    options = row["options"] | {"reward_mode": "dense"}
    flags = [word for key, value in options.items() for word in (key, str(value))]
    result: dict[str, Any] = {"commit": commit()}
    result["check"] = command(
        "check", row["name"], "--num-envs=2", "--steps=50", "--env.options", *flags
    )
    with TemporaryDirectory() as folder:
        run = f"{folder}/run"
        rollout = max(8, min(128, row["steps"] // row["envs"] // 8))
        result["train"] = command(
            *("train", "--env.name", row["name"], "--algorithm=sparse", f"--run-dir={run}"),
            *(f"--total-steps={row['steps']}", f"--env.num-envs={row['envs']}"),
            *(f"--learner.rollout-steps={rollout}", "--env.options", *flags),
        )
        if result["train"] == "yes":
            result["evaluate"] = command("evaluate", run, "--episodes=8", "--trust")
            watch = ("watch", run, "--width=320", "--max-frames=20", "--trust")
            result["watch"] = command(*watch)
            policy = marl.load(run, trust=True)
            trained = evaluate(policy, greedy=False, episodes=EPISODES, seed=1, num_envs=8)
            random = random_returns(row)
            error = np.sqrt(trained.returns.var() / EPISODES + random.var() / EPISODES)
            result["random"], result["trained"] = float(random.mean()), trained.mean
            result["learned"] = bool(trained.mean - random.mean() > 2 * error)
    result["seconds"] = time.process_time() - began
    return result


def installed(package: str) -> str:
    """Return a package's version; empty: it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def run_row(row: dict[str, Any], folder: Path) -> None:
    """Measure a row in a process of its own, and keep the result."""
    call = [sys.executable, "-m", "benchmarks.environments", "--row", row["name"]]
    try:
        ended = subprocess.run(
            [*call, "--out", str(folder)], timeout=SECONDS, capture_output=True, text=True
        )
        last = ended.stderr.strip().splitlines()[-1:] or ["nothing"]
        failure = None if ended.returncode == 0 else f"ended with {last[0]}"
    except subprocess.TimeoutExpired:
        failure = f"was not done in {SECONDS} s"
    if failure is not None:
        cell = {"check": failure, "seconds": float("nan"), "commit": commit()}
        atomic_write(cell_path(row, folder), json.dumps(cell).encode())


def table(folder: Path) -> str:
    """Return the page of all rows that were run."""
    lines = [
        "# Environments tried",
        "",
        "`python -m benchmarks.environments`: what the commands say to environments of many",
        "packages, and whether a team learned at all in a budget that is small on purpose (seed 0,",
        "PPO on what is paid in every step). *Learned*: the mean of 32 episodes of the trained",
        "team is more than two standard errors above that of 32 of random legal actions.",
        "Seconds are CPU seconds of all commands, imports and compiling included; `?` is what was",
        "not tried, as a command before it failed. Settings are the defaults, nothing was tuned.",
        f"{machine()}.",
        "",
        "| environment | package | check | train | evaluate | watch | steps | CPU s | random | "
        "trained | learned |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    notes, done, packages, learned = [], 0, set(), 0
    for row in rows():
        path = cell_path(row, folder)
        if not path.exists():
            continue
        cell, marks = json.loads(path.read_text()), []
        for name in ("check", "train", "evaluate", "watch"):
            said = cell.get(name, "?")
            if said not in ("yes", "?"):
                if not (notes and notes[-1].endswith(f": {said}")):  # the same for each command
                    notes.append(f"- `{row['name']}`, {name}: {said}")
                said = "**no**"
            marks.append(said)
        done, learned = done + 1, learned + bool(cell.get("learned"))
        packages.add(row["package"])
        scores = [f"{cell[key]:.2f}" if key in cell else "?" for key in ("random", "trained")]
        verdict = {True: "yes", False: "no", None: "?"}[cell.get("learned")]
        of = f"{row['package']} {cell.get('version', installed(row['package']))}"
        cells = [f"`{row['name']}`", of, *marks, f"{row['steps']:,}", f"{cell['seconds']:.0f}"]
        lines.append("| " + " | ".join([*cells, *scores, verdict]) + " |")
    lines += ["", f"{done} environments of {len(packages)} packages; {learned} learned.", ""]
    commits = {json.loads(cell_path(row, folder).read_text())["commit"] for row in rows()
               if cell_path(row, folder).exists()}  # fmt: skip
    lines += [f"Commits: {', '.join(sorted(commits))}.", ""]
    left = [row["name"] for row in rows() if not cell_path(row, folder).exists()]
    if left:
        lines += [f"Not run yet: {', '.join(f'`{name}`' for name in left)}.", ""]
    if notes:
        lines += ["What failed:", "", *notes, ""]
    return "\n".join(lines)


def main() -> None:
    """Run what has no result yet, and write the page after every row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--row", help="measure this one, in this process")
    parser.add_argument("--again", nargs="*", default=[], metavar="NAME")
    parser.add_argument("--out", type=Path, default=RESULTS / "environments")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for row in rows():
        path = cell_path(row, args.out)
        if args.row is not None:
            if row["name"] == args.row:
                result = measure(row) | {"version": installed(row["package"])}
                atomic_write(path, json.dumps(result, indent=1).encode())
            continue
        if path.exists() and row["name"] not in args.again:
            continue
        if not installed(row["package"]):
            print(f"{row['package']} is not installed: {row['name']} is left out")
            continue
        print(row["name"], flush=True)
        run_row(row, args.out)
        (RESULTS / "environments.md").write_text(table(args.out))


if __name__ == "__main__":
    main()
