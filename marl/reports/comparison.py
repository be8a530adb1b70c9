"""Runs side by side: groups of seeds, where they end, how fast, and who is above whom.

A group is all runs that differ in nothing but the seed; its name is what differs between groups of
an environment. Environments are apart, since their returns cannot be compared. Runs of a sweep with
named tasks and variants are named by these.

Axes: G points of a curve.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from marl import UserError
from marl.config import Config
from marl.config.io import flat, to_dict
from marl.reports.estimates import (
    Array,
    Estimate,
    estimate,
    improvement,
)
from marl.reports.kept import SUMMED, KeptRun
from marl.reports.recorded import RecordedRun, late_mean, smoothed
from marl.utils.text import one_line

LEVEL_SHARE = 0.8
"""Where on the way from the first returns to the best group's last the level lies."""
LONGEST_NAME = 60
"""Characters of a group's name, so that the table fits."""
BESIDE = ("seed", "device", "threads", "checkpoint_every", "keep_checkpoints")
"""Settings that make no other group."""
MEASURED_TOO = {
    "evaluation/greedy": "greedy return",
    "evaluation/sampled": "sampled return",
    "evaluation/greedy_won": "greedy win rate",
    "evaluation/sampled_won": "sampled win rate",
    "benchmark/reward_correlation": "reward correlation",
    "preference/accuracy": "accuracy",
    "preference/held_out_loss": "held-out loss",
    "reward/gradient_steps": "gradient steps",
    "preference/asked": "labels asked",
    "time/total": "seconds",
}
"""Metrics that stand in a table of their own, where runs have them: their newest numbers, but means
over the last tenth of the steps of those in `_MEANS`, and sums of those in `SUMMED`."""
_MEANS = (
    "benchmark/reward_correlation",
    "preference/accuracy",
    "preference/held_out_loss",
    "reward/gradient_steps",
)

Run = RecordedRun | KeptRun


class ComparisonError(UserError):
    """There is nothing to compare."""


@dataclass(frozen=True, kw_only=True)
class Seed:
    """One run: its measure by step, where episodes ended."""

    number: int
    steps: npt.NDArray[np.integer[Any]]
    """(G,)"""
    values: Array
    """(G,)"""
    final: float
    """Mean of the episodes that ended in the last tenth of the steps."""
    numbers: Mapping[str, float] = field(default_factory=dict)
    """Of `MEASURED_TOO`, those that are known."""
    origin: tuple[str, str] | None = None
    """Commit and machine, where they were kept."""


@dataclass(frozen=True, kw_only=True)
class TaskResults:
    """One task, most often an environment: its groups, and how far they are compared."""

    name: str
    groups: Mapping[str, Sequence[Seed]]
    until: int
    """Environment steps up to which it is compared."""
    measure: str = "return"
    title: str = ""
    """What its pictures are called; its name if empty."""

    @property
    def level(self) -> float:
        """The return from which on a group counts as having learned, unless one is given."""
        start = np.mean([seed.values[0] for seeds in self.groups.values() for seed in seeds])
        best = max(final_of(seeds).value for seeds in self.groups.values())
        return float(start + LEVEL_SHARE * (best - start))

    @property
    def seeds(self) -> list[int]:
        """Seeds of any group."""
        return sorted({seed.number for seeds in self.groups.values() for seed in seeds})


@dataclass(frozen=True, kw_only=True)
class Row:
    """What is said of one group in one environment."""

    task: str
    group: str
    seeds: tuple[int, ...]
    finals: tuple[float, ...]
    final: Estimate
    whole: Estimate
    """Mean of the curve, the area below it over its length."""
    level: float
    reached: int
    """Seeds whose curve has reached the level."""
    steps_to_level: float
    """Upper median over seeds; infinite unless more than half of them reached it."""
    numbers: Mapping[str, float]
    """Of `MEASURED_TOO`: means over the seeds that have them."""


def tasks_of(
    runs: Sequence[Run], metric: str | None = None, until: int | None = None
) -> tuple[list[TaskResults], list[str]]:
    """Return the tasks of some runs with their groups, and what was left out and why.

    Without a `metric` each task is compared by its own. Each is compared up to `until`, or as far
    as all of its runs have come.
    """
    notes: list[str] = []
    kept: list[Run] = []
    for run in runs:
        where, measure = one_line(str(run.folder), 300), metric_of(run, metric)
        if not np.isfinite(run.curve(measure)[1]).any():
            notes.append(f"left out: {where} has no {one_line(measure)} yet")
        elif until is not None and run.steps < until:
            notes.append(f"left out: {where} has {run.steps:,} steps, fewer than {until:,}")
        else:
            kept.append(run)
    without = [run for run in kept if isinstance(run, RecordedRun) and run.named is None]
    names, unnamed = group_names([run.config for run in without])
    if unnamed:
        notes.append(f"groups differ also in {', '.join(unnamed)}")
    by_settings = dict(zip(map(id, without), names, strict=True))
    by_task: dict[str, list[tuple[str, Run]]] = {}
    for run in kept:
        if run.named is not None:
            by_task.setdefault(run.named.task, []).append((run.named.group, run))
        else:
            by_task.setdefault(run.config.env.name, []).append((by_settings[id(run)], run))
    tasks = []
    for task, members in by_task.items():
        shortest = min((run for _, run in members), key=lambda run: run.steps)
        end = until if until is not None else shortest.steps
        if end < max(run.total_steps for _, run in members):
            least = f"as far as {shortest.folder} has come; --steps leaves out runs with fewer"
            notes.append(
                f"{one_line(task)}: compared up to {end:,} steps"
                + ("" if until is not None else f", {one_line(least, 400)}")
            )
        measure = metric_of(members[0][1], metric)
        groups, left_out = _groups(members, measure, end)
        notes += left_out
        if groups:
            algorithms = {run.config.algorithm for _, run in members if run.named is None}
            title = ", ".join([task, *algorithms] if len(algorithms) == 1 else [task])
            tasks.append(
                TaskResults(
                    name=task, groups=groups, until=end, measure=measured(measure), title=title
                )
            )
    return tasks, notes


def metric_of(run: Run, metric: str | None) -> str:
    """Return what a run is compared by: what is asked for, or what its name says."""
    return metric or (run.named.metric if run.named else "return/mean")


def _groups(
    members: Sequence[tuple[str, Run]], metric: str, until: int
) -> tuple[dict[str, list[Seed]], list[str]]:
    """Return the seeds of each named group up to a step, and what was left out and why."""
    groups: dict[str, list[Seed]] = {}
    notes = []
    for name, run in members:
        seed, where = seed_of(run, metric, until), one_line(str(run.folder), 300)
        if seed is None:
            notes.append(
                f"left out: no episode of {where} ended in the last tenth of {until:,} steps"
            )
        elif any(other.number == seed.number for other in groups.get(name, ())):
            notes.append(f"left out: {where} repeats seed {seed.number} of {name}")
        else:
            groups.setdefault(name, []).append(seed)
    for seeds in groups.values():
        seeds.sort(key=lambda seed: seed.number)
    return groups, notes


def seed_of(run: Run, metric: str, until: int) -> Seed | None:
    """Return a run up to a step; None if no episode ended in the last tenth of it.

    Iterations weigh as many episodes as ended in them.
    """
    steps, values = run.curve(metric)
    kept = (steps <= until) & np.isfinite(values)
    ends = isinstance(run, KeptRun) and metric == run.named.metric and until >= run.steps
    final = run.final if isinstance(run, KeptRun) and ends else late_mean(run, metric, until)
    if math.isnan(final):
        return None
    return Seed(
        number=run.seed,
        steps=steps[kept],
        values=values[kept],
        final=final,
        numbers=_numbers(run, until),
        origin=(run.commit, run.machine) if isinstance(run, KeptRun) else None,
    )


def _numbers(run: Run, until: int) -> dict[str, float]:
    """Return what is known of a run beside its measure, at a step."""
    if isinstance(run, KeptRun):
        numbers = {name: run.numbers[name] for name in MEASURED_TOO if name in run.numbers}
        return numbers | ({"time/total": run.seconds["total"]} if "total" in run.seconds else {})
    found = {}
    for name in MEASURED_TOO:
        steps, values = run.curve(name)
        late = steps > (0.9 * until if name in _MEANS else 0)
        if (inside := values[late & (steps <= until)]).size:
            whole = inside.mean() if name in _MEANS else inside[-1]
            found[name] = float(inside.sum() if name in SUMMED else whole)
    return found


def group_names(configs: Sequence[Config]) -> tuple[list[str], list[str]]:
    """Return what each run's group is called, and settings that the names leave out.

    A name is the settings in which groups of one environment differ, the algorithm by its value.
    The only group of an environment is called by its algorithm. If names would be longer than
    `LONGEST_NAME`, they hold few of these settings, which tell all groups apart.
    """
    settings = [flat(to_dict(config)) for config in configs]
    by_task: dict[str, list[Mapping[str, Any]]] = {}
    for values in settings:
        by_task.setdefault(values["env.name"], []).append(values)
    keys = [
        key
        for key in dict.fromkeys(key for values in settings for key in values)
        if key not in BESIDE and key != "env.name" and not key.startswith("eval.")
    ]
    differing = [
        key
        for key in keys
        if any(_count([key], found) > 1 for found in by_task.values())
        or (key == "algorithm" and _count([key], settings) > 1)
    ]
    alone = {task for task, found in by_task.items() if _count(differing, found) == 1}
    compared = [values for values in settings if values["env.name"] not in alone]

    def named(keys: Sequence[str]) -> list[str]:
        return [", ".join(_setting(key, values) for key in keys) for values in compared]

    names, told = named(differing), differing
    if max(map(len, names), default=0) > LONGEST_NAME:
        told = _fewest(differing, compared)
        names = named(told)
    groups = [tuple(repr(values.get(key)) for key in differing) for values in compared]
    distinct = iter(_distinct(names, groups))
    every = [
        values["algorithm"] if values["env.name"] in alone else next(distinct)
        for values in settings
    ]
    return every, [key for key in differing if key not in told]


def _count(keys: Sequence[str], settings: Sequence[Mapping[str, Any]]) -> int:
    """Return how many different values some settings have together."""
    return len({tuple(repr(values.get(key)) for key in keys) for values in settings})


def _fewest(keys: Sequence[str], settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return few of the keys that tell apart what all of them tell apart."""
    chosen = [key for key in keys if key == "algorithm"]
    while _count(chosen, settings) < _count(keys, settings):
        chosen.append(max(keys, key=lambda key: _count([*chosen, key], settings)))
    return [key for key in keys if key in chosen]


def _distinct(names: Sequence[str], groups: Sequence[tuple[str, ...]]) -> list[str]:
    """Return names of groups, cut to `LONGEST_NAME` and numbered where several would share one."""
    cut = [one_line(name, LONGEST_NAME) for name in names]
    sharing: dict[str, list[tuple[str, ...]]] = {}
    for name, group in zip(cut, groups, strict=True):
        if group not in sharing.setdefault(name, []):
            sharing[name].append(group)
    return [
        f"{name} ({sharing[name].index(group) + 1})" if len(sharing[name]) > 1 else name
        for name, group in zip(cut, groups, strict=True)
    ]


def _setting(key: str, values: Mapping[str, Any]) -> str:
    if key == "algorithm":
        return str(values[key])
    value = values.get(key)
    shown = "preset" if value is None else f"{value:g}" if type(value) is float else str(value)
    return one_line(f"{key}={shown}", 60)


def measured(metric: str) -> str:
    """Return what a metric is called in tables and pictures."""
    return {"return/mean": "return", "episode/won": "win rate"}.get(metric, one_line(metric))


def final_of(seeds: Sequence[Seed]) -> Estimate:
    """Return where the typical seed of a group ends."""
    return estimate([seed.final for seed in seeds])


def rows_of(task: TaskResults, level: float | None = None) -> list[Row]:
    """Return a row for each group, the best first."""
    level = task.level if level is None else level
    rows = [_row(task, name, seeds, level) for name, seeds in task.groups.items()]
    return sorted(rows, key=lambda row: -row.final.value)


def _row(task: TaskResults, group: str, seeds: Sequence[Seed], level: float) -> Row:
    reached = [steps_to(seed, level) for seed in seeds]
    known = {n: [s.numbers[n] for s in seeds if n in s.numbers] for n in MEASURED_TOO}
    return Row(
        task=task.name,
        group=group,
        seeds=tuple(seed.number for seed in seeds),
        finals=tuple(seed.final for seed in seeds),
        final=final_of(seeds),
        whole=estimate([area_below(seed) for seed in seeds]),
        level=level,
        reached=sum(math.isfinite(steps) for steps in reached),
        steps_to_level=float(sorted(reached)[len(reached) // 2]),
        numbers={name: float(np.mean(values)) for name, values in known.items() if values},
    )


def steps_to(seed: Seed, level: float) -> float:
    """Return the steps after which a curve first reaches a level; infinite if it never does."""
    above = np.flatnonzero(smoothed(seed.values) >= level)
    return float(seed.steps[above[0]]) if len(above) else math.inf


def area_below(seed: Seed) -> float:
    """Return the mean over steps of a curve that is straight between its points."""
    if len(seed.steps) < 2:
        return float(seed.values[0])
    area = np.trapezoid(seed.values, seed.steps.astype(np.float64))
    return float(area / (seed.steps[-1] - seed.steps[0]))


def improvements(
    tasks: Sequence[TaskResults], names: Sequence[str], rows: Sequence[str] | None = None
) -> dict[tuple[str, str], Estimate]:
    """Return the probability that a seed of the one group ends above one of the other.

    Over the environments in which both were trained; of the groups in `rows`, if not of all.
    """
    finals = [{n: [seed.final for seed in g] for n, g in task.groups.items()} for task in tasks]
    found = {}
    for ours in names if rows is None else rows:
        for other in names:
            pairs = [(f[ours], f[other]) for f in finals if ours in f and other in f]
            if ours != other and pairs:
                found[ours, other] = improvement(pairs)
    return found


def text(foreign: str) -> str:
    """Return a foreign text for a cell of a Markdown table."""
    plain = one_line(foreign, 400)
    return plain.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
