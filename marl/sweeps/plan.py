"""A sweep as its file describes it: a base, the settings that are tried, and the seeds.

Everything is checked before anything starts. Which settings a trial has is a function of the file
and the trial's number (grid, random), or of what trials before it have reached (optuna).
"""

import itertools
import math
import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from envs.registry import check_family
from marl.config import Config, ConfigError
from marl.config.io import config_from_dict, flat, plain, read_toml, set_dotted
from marl.config.validation import Range, build, settings, takes_integers
from marl.reports.recorded import RunName

_MOST_TRIALS = 10_000
_DRAWS = 20
"""Combinations in which a value is tried that fails alone."""

Settings = dict[str, Any]
"""Values by dotted name."""

Seeds = tuple[Annotated[int, Range(0, 2**63 - 1)], ...]


@settings()
class SweepConfig:
    """What a sweep's file may say."""

    config: str = ""
    """TOML file of settings that all runs share, from the folder of the sweep's file."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Settings that all runs share, in place of the file's."""
    search: dict[str, Any] = Field(default_factory=dict)
    """Settings that are tried, each a list of values or a range ``{ low = 1e-4, high = 1e-2 }``,
    with ``log = true`` on a logarithmic scale. On a grid a range says how many values it has:
    ``count = 5``."""
    tasks: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """What is learned, by name: tables of settings, in which may also stand ``config``, a file of
    settings, ``metric``, ``seeds``, ``variants``, the names of those that are tried with it, and
    ``with.VARIANT``, settings of one variant with this task. Each is compared by itself."""
    variants: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """What is compared, by name: tables of settings that are set together. Every task is trained
    with every variant; a task's settings are changed by a variant's."""
    against: str = ""
    """The variant that the others are said to be above or below of."""
    method: Literal["grid", "random", "optuna"] = "grid"
    """``grid``: all combinations. ``random``: `trials` independent ones. ``optuna``: each of
    `trials` is chosen by what those before it have reached, and ended early where its first seeds
    are below the median of others."""
    trials: Annotated[int, Range(1, _MOST_TRIALS)] | None = None
    """Combinations that are tried; with ``grid``, all."""
    seeds: Annotated[Seeds, Field(min_length=1)] = (0,)
    """Every trial is a run with each of them."""
    evaluation_seeds: Seeds = ()
    """Seeds with which the best trial is trained anew, none of them in `seeds`: the best of many is
    above itself by luck on the seeds it was chosen by."""
    search_seed: Annotated[int, Range(0, 2**63 - 1)] = 0
    """Seed of the choices of ``random`` and ``optuna``."""
    metric: str = "return/mean"
    """What is best where it is largest: a column of metrics.csv over the last tenth of a run."""
    prune: bool = True
    """Whether ``optuna`` ends trials early."""


@dataclass(frozen=True)
class Choice:
    """A setting that takes one of some values."""

    name: str
    values: tuple[Any, ...]

    def grid(self) -> list[Any]:
        """Return all values."""
        return list(self.values)

    def draw(self, rng: random.Random) -> Any:
        """Return a random value."""
        return rng.choice(self.values)


@dataclass(frozen=True)
class Interval:
    """A setting that takes any number from `low` to `high`."""

    name: str
    low: float
    high: float
    log: bool
    count: int
    """Values on a grid; 0 where the file gives none."""
    whole: bool

    def grid(self) -> list[Any]:
        """Return `count` values at equal distances, or ratios."""
        if self.count == 1:
            return [self._number(self.low)]
        spaced = np.geomspace if self.log else np.linspace
        values = [self._number(value) for value in spaced(self.low, self.high, self.count).tolist()]
        return list(dict.fromkeys(values))

    def draw(self, rng: random.Random) -> Any:
        """Return a random number, uniform or with a uniform logarithm."""
        if self.whole and not self.log:
            return rng.randint(int(self.low), int(self.high))
        share = rng.random()
        if self.log:
            return self._number(self.low * (self.high / self.low) ** share)
        return self._number(self.low + (self.high - self.low) * share)

    def _number(self, value: float) -> float:
        bounded = min(max(value, self.low), self.high)
        return round(bounded) if self.whole else bounded


Parameter = Choice | Interval


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is learned in some of the trials."""

    name: str = ""
    """Empty: that of a sweep without named tasks."""
    file: Settings = field(default_factory=dict)
    """Settings of its file."""
    settings: Settings = field(default_factory=dict)
    metric: str
    seeds: tuple[int, ...]
    variants: tuple[str, ...]
    """Those it is trained with."""
    special: Mapping[str, Settings] = field(default_factory=dict)
    """Settings of single variants with this task."""


@settings()
class _TaskEntry:
    """What a task's table may say beside settings."""

    config: str = ""
    metric: str = ""
    seeds: Seeds = ()
    variants: tuple[str, ...] = ()
    special: dict[str, dict[str, Any]] = Field(default_factory=dict)


_TASK_KEYS = {key: key for key in ("config", "metric", "seeds", "variants")} | {"with": "special"}
"""Keys of a task's table that are no settings, and their fields."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A sweep whose file is right."""

    config: SweepConfig
    file: Settings
    """Settings of the file that runs share."""
    shared: Settings
    """Settings that runs share, in place of files'."""
    tasks: tuple[Task, ...]
    variants: Mapping[str, Settings]
    parameters: tuple[Parameter, ...]
    is_quick: bool = False
    """Whether runs are cut to one iteration."""

    @property
    def is_named(self) -> bool:
        """Whether trials have names, those of a task and of a variant."""
        return bool(self.config.tasks or self.config.variants)

    @cached_property
    def num_trials(self) -> int:
        """Trials in all."""
        if self.config.method == "grid":
            return len(self._pairs) * self._combinations
        assert self.config.trials is not None  # by `load_plan`
        return self.config.trials

    @cached_property
    def _combinations(self) -> int:
        """Combinations of a grid's values."""
        return math.prod(len(parameter.grid()) for parameter in self.parameters)

    @cached_property
    def _pairs(self) -> list[tuple[Task, str]]:
        """Tasks and variants, in the order of the file."""
        return [(task, variant) for task in self.tasks for variant in task.variants]

    def task_of(self, trial: int) -> Task:
        """Return what a trial learns."""
        return self._pairs[trial // self._combinations][0] if self.is_named else self.tasks[0]

    def settings_of(self, trial: int) -> Settings:
        """Return what a trial of a grid or a random search tries: settings, or names of them."""
        if self.config.method == "grid":
            pair, combination = divmod(trial, self._combinations)
            task, variant = self._pairs[pair]
            named = {"task": task.name, "variant": variant} if self.is_named else {}
            grids = [parameter.grid() for parameter in self.parameters]
            values = next(itertools.islice(itertools.product(*grids), combination, None))
            return named | {p.name: v for p, v in zip(self.parameters, values, strict=True)}
        rng = random.Random(f"{self.config.search_seed}/{trial}")
        return {parameter.name: parameter.draw(rng) for parameter in self.parameters}

    def place_of(self, trial: int) -> str:
        """Return the folder of a trial within that of all: its names, or its number."""
        if not self.is_named:
            return f"{trial:04d}"
        pair, combination = divmod(trial, self._combinations)
        task, variant = self._pairs[pair]
        parts = [task.name or "all", variant or "all"]
        return "/".join([*parts, f"{combination:04d}"] if self.parameters else parts)

    def name_of(self, trial: int, tried: Settings) -> RunName:
        """Return what a trial is called in comparisons."""
        task = self.task_of(trial)
        values = {k: v for k, v in tried.items() if k not in ("task", "variant")}
        told = [str(v) if k == "algorithm" else f"{k}={v}" for k, v in values.items()]
        group = ", ".join([*filter(None, [str(tried.get("variant", ""))]), *told])
        env = self.config_of(tried, 0).env.name
        return RunName(task=task.name or env, group=group or "all", metric=task.metric)

    def quickened(self) -> "Plan":
        """Return the same trials with one iteration and one seed each."""
        return replace(
            self,
            tasks=tuple(replace(task, seeds=task.seeds[:1]) for task in self.tasks),
            is_quick=True,
        )

    @property
    def names(self) -> list[str]:
        """What trials differ in: names, and settings that are searched."""
        named = ["task", "variant"] if self.is_named else []
        return named + [parameter.name for parameter in self.parameters]

    def given(self, tried: Settings) -> Settings:
        """Return all settings that the file gives to a run, by itself or by naming a file."""
        rest = dict(tried)
        named, variant = rest.pop("task", ""), rest.pop("variant", "")
        task = next((task for task in self.tasks if task.name == named), Task(**_NONE))
        own = task.settings | self.variants.get(variant, {}) | task.special.get(variant, {})
        cut = {"total_steps": 1} if self.is_quick else {}
        return {"threads": 1} | self.file | task.file | self.shared | own | rest | cut

    def config_of(self, tried: Settings, seed: int, where: str = "sweep") -> Config:
        """Return the settings of a run; `ConfigError` if they contradict each other."""
        values: dict[str, Any] = {}
        set_dotted(values, self.given(tried) | {"seed": seed}, where)
        return config_from_dict(values, where)

    def to_dict(self) -> dict[str, Any]:
        """Return all that the sweep's results depend on, as plain values."""
        config: dict[str, Any] = plain(self.config)
        for name in ("config", "against", "tasks", "variants"):
            del config[name]
        search = {parameter.name: plain(parameter) for parameter in self.parameters}
        base = self.given({})
        names: dict[str, Any] = {"quick": True} if self.is_quick else {}
        if self.is_named:
            base = {"threads": 1} | self.file
            variants = {name: {"name": name} | values for name, values in self.variants.items()}
            names |= {"shared": self.shared, "variants": variants}
            names["tasks"] = {
                task.name: {
                    "name": task.name,
                    "file": task.file,
                    "settings": task.settings,
                    "with": task.special,
                }
                for task in self.tasks
            }
        return config | {"trials": self.num_trials, "settings": base, "search": search} | names


_NONE: dict[str, Any] = {"metric": "", "seeds": (), "variants": ()}


def load_plan(path: Path) -> Plan:
    """Return the sweep of a file; raise `ConfigError` with what is wrong, before anything starts.

    Each value is tried alone, and each combination of a grid or a random search.
    """
    where = str(path)
    config = build(SweepConfig, read_toml(path), where)
    named = path.parent / config.config if config.config else None
    plan = Plan(
        config=config,
        file=flat(read_toml(named)) if named else {},
        shared=flat(config.settings),
        tasks=(),
        variants={name: flat(values) for name, values in config.variants.items()} or {"": {}},
        parameters=(),
    )
    plan = replace(plan, tasks=tuple(_tasks(config, plan.variants, path)))
    for given in (plan.file, plan.shared, *plan.variants.values()):
        _check_no_seed(given, where)
    if not plan.is_named:
        plan.config_of({}, config.seeds[0], where if named is None else f"{where}, with {named}")
    plan = replace(plan, parameters=tuple(_parameters(config.search, where)))
    _check_numbers(plan, where)
    if plan.is_named:
        _check_names(config, where)
    else:
        _check_values(plan, where)
    envs = [plan.given({}).get("env.name")]
    envs += [v for p in plan.parameters if p.name == "env.name" for v in tried_values(p)]
    if config.method != "optuna":
        for trial in range(plan.num_trials):
            tried = plan.settings_of(trial)
            told = "/".join(tried[k] for k in ("task", "variant") if tried.get(k)) or trial
            plan.config_of(tried, config.seeds[0], f"{where}: trial {told}")
            envs.append(plan.given(tried).get("env.name"))
    for name in dict.fromkeys(filter(None, envs)):
        check_family(name)
    return plan


def _check_no_seed(settings: Settings, where: str) -> None:
    if "seed" in settings:
        raise ConfigError(f"{where}: settings: seed is not set by itself; give seeds, a list")


def _tasks(config: SweepConfig, variants: Mapping[str, Settings], path: Path) -> Iterator[Task]:
    """Yield the tasks of a file, or the one of a file that names none."""
    every = tuple(variants)
    if not config.tasks:
        yield Task(metric=config.metric, seeds=config.seeds, variants=every)
    for name, table in config.tasks.items():
        where = f"{path}: tasks.{name}"
        own = {key: table[key] for key in _TASK_KEYS if key in table}
        entry = build(_TaskEntry, {_TASK_KEYS[key]: value for key, value in own.items()}, where)
        if unknown := [one for one in (*entry.variants, *entry.special) if one not in variants]:
            raise ConfigError(
                f"{where}: variants: there is no {', '.join(unknown)}; [variants] has "
                + (", ".join(filter(None, every)) or "none")
            )
        file = flat(read_toml(path.parent / entry.config)) if entry.config else {}
        given = flat({key: value for key, value in table.items() if key not in own})
        special = {variant: flat(values) for variant, values in entry.special.items()}
        for values in (file, given, *special.values()):
            _check_no_seed(values, where)
        yield Task(
            name=name,
            file=file,
            settings=given,
            metric=entry.metric or config.metric,
            seeds=entry.seeds or config.seeds,
            variants=entry.variants or every,
            special=special,
        )


def _check_names(config: SweepConfig, where: str) -> None:
    """Raise `ConfigError` for names that are no folders', and for what goes with a search only."""
    for kind, names in (("tasks", config.tasks), ("variants", config.variants)):
        for name in names:
            if not re.fullmatch(r"[\w+-]{1,60}", name):
                raise ConfigError(
                    f"{where}: {kind}: {name!r} names a folder, too; use letters, digits, _ + -"
                )
    if config.against and config.against not in config.variants:
        raise ConfigError(f"{where}: against: there is no variant {config.against!r}")
    if config.method != "grid":
        raise ConfigError(f"{where}: method: tasks and variants are crossed on a grid only")
    if config.evaluation_seeds:
        raise ConfigError(f"{where}: evaluation_seeds: no trial is the best of several tasks")


def _check_numbers(plan: Plan, where: str) -> None:
    """Raise `ConfigError` for trials and seeds that do not fit the method or each other."""
    config = plan.config
    if config.method == "grid" and config.trials is not None:
        raise ConfigError(f"{where}: trials: a grid has as many as combinations; leave it out")
    if config.method != "grid" and config.trials is None:
        raise ConfigError(f"{where}: trials: say how many method = {config.method!r} tries")
    for parameter in plan.parameters:
        if config.method == "grid" and isinstance(parameter, Interval) and not parameter.count:
            raise ConfigError(
                f"{where}: search.{parameter.name}: on a grid a range says how many values it has, "
                "e.g. count = 5"
            )
    if plan.num_trials > _MOST_TRIALS:
        raise ConfigError(
            f"{where}: the grid has {plan.num_trials:,} combinations, more than {_MOST_TRIALS:,}; "
            'try fewer values, or set method = "random"'
        )
    lists = [("seeds", config.seeds), ("evaluation_seeds", config.evaluation_seeds)]
    lists += [(f"tasks.{task.name}: seeds", task.seeds) for task in plan.tasks if task.name]
    for name, seeds in lists:
        if repeated := sorted({seed for seed in seeds if seeds.count(seed) > 1}):
            raise ConfigError(f"{where}: {name}: {', '.join(map(str, repeated))} stands twice")
    if both := sorted(set(config.seeds) & set(config.evaluation_seeds)):
        raise ConfigError(
            f"{where}: evaluation_seeds: {', '.join(map(str, both))} also in seeds; the best trial "
            "is chosen by those and must be measured on others"
        )


def _check_values(plan: Plan, where: str) -> None:
    """Raise `ConfigError` for a value that no run can have.

    One that contradicts the base may go with other values of the search.
    """
    rng = random.Random(0)
    for parameter in plan.parameters:
        for value in tried_values(parameter):
            try:
                plan.config_of({parameter.name: value}, 0, f"{where}: search")
            except ConfigError:
                others = [
                    {p.name: p.draw(rng) for p in plan.parameters} | {parameter.name: value}
                    for _ in range(_DRAWS)
                ]
                if not any(_fits(plan, tried) for tried in others):
                    raise


def _fits(plan: Plan, tried: Settings) -> bool:
    try:
        plan.config_of(tried, 0)
    except ConfigError:
        return False
    return True


def tried_values(parameter: Parameter) -> list[Any]:
    """Return the values of a choice, and the ends of an interval."""
    if isinstance(parameter, Choice):
        return list(parameter.values)
    return [parameter.low, parameter.high]


def _parameters(search: Mapping[str, Any], where: str, prefix: str = "") -> Iterator[Parameter]:
    """Yield what is searched; tables within tables stand for dotted names."""
    for key, value in search.items():
        name = f"{prefix}{key}"
        if name == "seed":
            raise ConfigError(f"{where}: search: seed is not searched; give seeds, a list")
        if isinstance(value, dict) and not ({"low", "high"} & set(value)):
            yield from _parameters(value, where, f"{name}.")
        elif isinstance(value, dict):
            yield _interval(name, value, where)
        elif isinstance(value, list) and value:
            repeated = [v for i, v in enumerate(value) if v in value[:i]]
            if repeated:
                raise ConfigError(f"{where}: search.{name}: {repeated[0]!r} stands twice")
            yield Choice(name, tuple(value))
        else:
            raise ConfigError(
                f"{where}: search.{name}: got {value!r}, expected a list of values or a range "
                "{ low = ..., high = ... }"
            )


def _interval(name: str, value: Mapping[str, Any], where: str) -> Interval:
    """Return a range as the file gives it."""
    given = build(_Range, dict(value), where, f"search.{name}.")
    low, high = given.low, given.high
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ConfigError(f"{where}: search.{name}: low must be less than high, got {dict(value)}")
    if given.log and low <= 0:
        raise ConfigError(f"{where}: search.{name}.low: a logarithmic range begins above 0")
    whole = takes_integers(Config, name)
    if whole and not (low.is_integer() and high.is_integer()):
        raise ConfigError(f"{where}: search.{name}: {name} is a whole number, and so are its ends")
    if whole:
        low, high = int(low), int(high)
    return Interval(name, low, high, log=given.log, count=given.count, whole=whole)


@settings()
class _Range:
    low: float
    high: float
    log: bool = False
    count: Annotated[int, Range(0, _MOST_TRIALS)] = 0
