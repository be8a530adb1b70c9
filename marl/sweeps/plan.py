"""A sweep as its file describes it: a base, the settings that are tried, and the seeds.

Everything is checked before anything starts. Which settings a trial has is a function of the file
and the trial's number (grid, random), or of what trials before it have reached (optuna).
"""

import itertools
import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from envs.registry import check_family
from marl.config import Config, ConfigError
from marl.config.io import config_from_dict, flat, plain, read_toml, set_dotted
from marl.config.validation import Range, build, settings, takes_integers

_MOST_TRIALS = 10_000
_DRAWS = 20
"""Combinations in which a value is tried that fails alone."""

Settings = dict[str, Any]
"""Values by dotted name."""


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
    method: Literal["grid", "random", "optuna"] = "grid"
    """``grid``: all combinations. ``random``: `trials` independent ones. ``optuna``: each of
    `trials` is chosen by what those before it have reached, and ended early where its first seeds
    are below the median of others."""
    trials: Annotated[int, Range(1, _MOST_TRIALS)] | None = None
    """Combinations that are tried; with ``grid``, all."""
    seeds: Annotated[tuple[Annotated[int, Range(0, 2**63 - 1)], ...], Field(min_length=1)] = (0,)
    """Every trial is a run with each of them."""
    evaluation_seeds: tuple[Annotated[int, Range(0, 2**63 - 1)], ...] = ()
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
class Plan:
    """A sweep whose file is right."""

    config: SweepConfig
    base: Settings
    """All settings that runs share."""
    parameters: tuple[Parameter, ...]

    @cached_property
    def num_trials(self) -> int:
        """Trials in all."""
        if self.config.method == "grid":
            return math.prod(len(parameter.grid()) for parameter in self.parameters)
        assert self.config.trials is not None  # by `load_plan`
        return self.config.trials

    def settings_of(self, trial: int) -> Settings:
        """Return the settings tried by a trial of a grid or a random search."""
        if self.config.method == "grid":
            grids = [parameter.grid() for parameter in self.parameters]
            values = next(itertools.islice(itertools.product(*grids), trial, None))
            return dict(zip(self.names, values, strict=True))
        rng = random.Random(f"{self.config.search_seed}/{trial}")
        return {parameter.name: parameter.draw(rng) for parameter in self.parameters}

    @property
    def names(self) -> list[str]:
        """Settings that are tried."""
        return [parameter.name for parameter in self.parameters]

    def config_of(self, tried: Settings, seed: int, where: str = "sweep") -> Config:
        """Return the settings of a run; `ConfigError` if they contradict each other."""
        values: dict[str, Any] = {}
        set_dotted(values, self.base | tried | {"seed": seed}, where)
        return config_from_dict(values, where)

    def to_dict(self) -> dict[str, Any]:
        """Return all that the sweep's results depend on, as plain values."""
        config: dict[str, Any] = plain(self.config)
        del config["config"]
        search = {parameter.name: plain(parameter) for parameter in self.parameters}
        return config | {"trials": self.num_trials, "settings": self.base, "search": search}


def load_plan(path: Path) -> Plan:
    """Return the sweep of a file; raise `ConfigError` with what is wrong, before anything starts.

    Each value is tried alone, and each combination of a grid or a random search.
    """
    where = str(path)
    config = build(SweepConfig, read_toml(path), where)
    named = path.parent / config.config if config.config else None
    base = {"threads": 1} | (flat(read_toml(named)) if named else {}) | flat(config.settings)
    if "seed" in base:
        raise ConfigError(f"{where}: settings: seed is not set by itself; give seeds, a list")
    plan = Plan(config=config, base=base, parameters=())
    plan.config_of({}, config.seeds[0], where if named is None else f"{where}, with {named}")
    plan = replace(plan, parameters=tuple(_parameters(config.search, where)))
    _check_numbers(plan, where)
    _check_values(plan, where)
    if config.method != "optuna":
        for trial in range(plan.num_trials):
            plan.config_of(plan.settings_of(trial), config.seeds[0], f"{where}: trial {trial}")
    names = [v for p in plan.parameters if p.name == "env.name" for v in tried_values(p)]
    for name in [base.get("env.name"), *names]:
        if name is not None:
            check_family(name)
    return plan


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
    for name in ("seeds", "evaluation_seeds"):
        seeds = getattr(config, name)
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
