"""Settings to and from TOML files and dotted flags, and what of them a run may change."""

import dataclasses
import difflib
import tomllib
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

from marl.config.schema import Config
from marl.config.validation import ConfigError, build
from marl.utils.files import atomic_write

MAY_CHANGE = (
    "total_steps",
    "checkpoint_every",
    "keep_checkpoints",
    "threads",
    "eval.every",
    "eval.episodes",
    "eval.num_envs",
    "eval.patience",
    "eval.min_delta",
    "eval.film_every",
    "preferences.max_labels",
    "preferences.deadline",
    "preferences.llm.max_calls",
    "preferences.llm.max_total_tokens",
    "preferences.llm.max_cost",
    "preferences.llm.max_seconds",
    "preferences.llm.concurrency",
    "preferences.llm.timeout",
    "preferences.llm.deadline",
    "preferences.llm.attempts",
)
"""Lengths, budgets, and how things are done that change no number."""


def to_dict(config: Config) -> dict[str, Any]:
    """Return the settings as nested plain values, ready for TOML."""
    return typing.cast(dict[str, Any], plain(config))


def plain(value: Any) -> Any:
    """Return dataclasses as dicts and tuples as lists; what is None, TOML leaves out."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return {name: plain(field) for name, field in fields.items() if field is not None}
    return [plain(item) for item in value] if isinstance(value, tuple) else value


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings under dotted keys."""
    items: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            items |= flat(value, f"{prefix}{key}.")
        else:
            items[f"{prefix}{key}"] = value
    return items


def save_config(config: Config, path: Path) -> None:
    """Write every setting to a TOML file atomically."""
    atomic_write(path, tomli_w.dumps(to_dict(config)).encode())


def shipped_configs() -> Path:
    """Return the folder ``configs``: inside a wheel, or of the checkout."""
    package = Path(__file__).parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def load_config(path: str | Path | None = None, overrides: dict[str, Any] | None = None) -> Config:
    """Return the defaults, changed by a TOML file and then by dotted `overrides`.

    Raises `ConfigError` naming the file, the key, what it got and what it expected.
    """
    values: dict[str, Any] = {}
    where = "overrides"
    if path is not None:
        where = str(path)
        values = read_toml(Path(path))
    set_dotted(values, overrides or {}, "overrides")
    return config_from_dict(values, where)


def set_dotted(values: dict[str, Any], overrides: Mapping[str, Any], where: str) -> None:
    """Change nested values in place by dotted names; `where` names their origin in errors."""
    for dotted, value in overrides.items():
        section = values
        *parents, last = dotted.split(".")
        for parent in parents:
            section = section.setdefault(parent, {})
            if not isinstance(section, dict):
                raise ConfigError(f"{where}: {dotted}: {parent} is a value, not a section")
        section[last] = value


def load_run_config(folder: Path) -> Config:
    """Return the settings in a run's folder; `ConfigError` if it is none."""
    path = folder / "config.toml"
    if not path.is_file():
        inside = sorted(found.parent for found in folder.glob("*/config.toml"))
        hint = f"; name one of the runs in it, e.g. {inside[-1]}" if inside else ""
        raise ConfigError(f"{folder} is not a run folder: it has no config.toml{hint}")
    return load_config(path)


def config_from_dict(values: dict[str, Any], where: str) -> Config:
    """Return the `Config` of nested plain values; `where` names their origin in errors."""
    return build(Config, values, where)


TOML_FAULTS = (ValueError, RecursionError)
"""What `tomllib` raises: for what is no TOML, for integers of 5,000 digits, for deep nesting."""


def read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        beside = path.parent.glob("*.toml") if path.parent.is_dir() else ()
        near = sorted(str(p) for p in beside if p.name != "pyproject.toml")
        hint = f"; there are: {', '.join(near)}" if near else ""
        raise ConfigError(f"{path}: no such config file{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    except TOML_FAULTS as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None


def changed(config: Config, changes: Mapping[str, Any], where: str) -> Config:
    """Return a run's settings with some of `MAY_CHANGE` changed; `where` names them in errors."""
    for name in changes:
        if name not in MAY_CHANGE:
            last = name.rpartition(".")[2]
            near = [one for one in MAY_CHANGE if one.rpartition(".")[2] == last]
            near = near or difflib.get_close_matches(name, MAY_CHANGE, n=1)
            hint = f"; did you mean {near[0]}?" if near else "."
            raise ConfigError(
                f"{where}: {name} cannot change when a run goes on{hint} What can: "
                f"{', '.join(MAY_CHANGE)}. For anything else begin a new run from what this one "
                "has learned: marl train --init RUN"
            )
    values = to_dict(config)
    set_dotted(values, changes, where)
    return config_from_dict(values, where)


def fixed_differences(saved: Config, now: Config) -> list[str]:
    """Return what differs between two settings of a run that may not change, in words."""
    before, after = flat(to_dict(saved)), flat(to_dict(now))
    return [
        f"{key} ({before.get(key)!r} there, {after.get(key)!r} here)"
        for key in sorted(before | after)
        if key not in MAY_CHANGE and before.get(key) != after.get(key)
    ]
