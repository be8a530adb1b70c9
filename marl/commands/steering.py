"""Steering a team that is evaluated or filmed: ``--contrast``, ``--guide`` and ``--strength``."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from marl.config import ConfigError
from marl.utils.files import atomic_write, output
from marl.utils.text import LiteralConsole

if TYPE_CHECKING:
    from marl.evaluation import Evaluation, SteeringCurve
    from marl.policy import Policy

STRENGTHS = (0.0, 0.5, 1.0, 2.0)
"""Those that are evaluated where none are given."""


def check_options(contrast: str, guide: Path | None, strength: object) -> bool:
    """Return whether a team is to be steered; raise `ConfigError` for options in conflict."""
    if contrast and guide is not None:
        raise ConfigError("--contrast, --guide: got both; a team is steered by one of them")
    is_steered = bool(contrast) or guide is not None
    if strength is not None and not is_steered:
        raise ConfigError(
            "--strength: how strong a contrast or guidance is; name the base by --contrast, or a "
            "reward by --guide"
        )
    return is_steered


def steering(
    policy: "Policy", contrast: str, guide: Path | None
) -> "tuple[Callable[[float], Policy], str]":
    """Return from a strength to the steered team, and what the steering is called.

    `contrast` is a run, a fit, one of its checkpoints, or ``uniform``; `guide` a run or a fit of a
    reward.
    """
    from marl.contrast import contrasted, guided
    from marl.policy import load
    from marl.rewards.io import load_reward

    if guide is not None:
        reward = load_reward(guide, policy.spec, "--guide")
        return lambda strength: guided(policy, reward, strength), f"guided by {guide}"
    base = None if contrast == "uniform" else load(contrast)
    if base is not None and (base.folder, base.steps) == (policy.folder, policy.steps):
        raise ConfigError(
            f"--contrast: {contrast} is the team itself, after {base.steps:,} steps; name an "
            "earlier checkpoint, another run, or uniform"
        )
    return lambda strength: contrasted(policy, base, strength), f"contrast to {contrast}"


def evaluate_steered(
    policy: "Policy",
    path: Path,
    *,
    contrast: str,
    guide: Path | None,
    strengths: Sequence[float] | None,
    episodes: int,
    seed: int,
    num_envs: int,
) -> None:
    """Print the table of all strengths and their controls; write every return, and a picture."""
    from rich.progress import Progress

    from marl.evaluation import steering_curve
    from marl.reports.plots import plot_steering

    steer, name = steering(policy, contrast, guide)
    console = LiteralConsole(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=1.0)

        def progress(what: str, share: float) -> None:
            bar.update(task, completed=share, description=what)

        curve = steering_curve(
            policy,
            steer,
            STRENGTHS if strengths is None else strengths,
            episodes=episodes,
            seed=seed,
            num_envs=num_envs,
            progress=progress,
        )
    title = f"{policy.config.env.name} {policy.trained}, {name}"
    show(curve, title, policy.spec.successes)
    report = {
        "steps": policy.steps,
        "seed": seed,
        "steering": name,
        "greedy": to_json(curve.greedy),
        "points": [
            {
                "strength": point.strength,
                "sampled": to_json(point.sampled),
                "greedy": to_json(point.greedy),
                "sharpened": None if point.sharpened is None else to_json(point.sharpened),
            }
            for point in curve.points
        ],
    }
    with output(path, "name a file by --out in a folder that is there"):
        atomic_write(path, json.dumps(report, indent=1).encode())
    picture = plot_steering(curve, name, path.with_suffix(".png"))
    print(f"written to {path} and {picture}")


def to_json(result: "Evaluation") -> dict[str, Any]:
    """Return plain values of one way of acting."""
    return {
        "mean": result.mean,
        "interval": [result.low, result.high],
        "facts": result.facts,
        "returns": result.returns.tolist(),
    }


def show(curve: "SteeringCurve", title: str, successes: Sequence[str]) -> None:
    """Print the table of a curve."""
    from rich.table import Table

    table = Table(title=title)
    for heading in ("strength", "sampled", "95 % interval", *successes, "greedy", "sharpened"):
        table.add_column(heading, justify="right")
    for point in curve.points:
        sampled, sharpened = point.sampled, point.sharpened
        table.add_row(
            f"{point.strength:g}",
            f"{sampled.mean:.2f}",
            f"{sampled.low:.2f} to {sampled.high:.2f}",
            *(f"{sampled.facts[name]:.0%}" for name in successes),
            f"{point.greedy.mean:.2f}",
            "" if sharpened is None else f"{sharpened.mean:.2f}",
        )
    console = LiteralConsole()
    console.print(table)
    console.print(
        "sharpened is the control pi^(1 + strength), sampled; its limit, the team itself acting "
        f"greedily, has {curve.greedy.mean:.2f}",
        soft_wrap=True,
    )
