"""Settings to and from TOML files and dotted flags."""

import dataclasses
import difflib
import tomllib
import types
import typing
from pathlib import Path
from typing import Any, Literal, TypeVar

import tomli_w

from marl.config import Config, ConfigError

T = TypeVar("T")


def to_dict(config: Config) -> dict[str, Any]:
    """Return the settings as nested plain values, ready for TOML."""
    return typing.cast(dict[str, Any], plain(config))


def plain(value: Any) -> Any:
    """Return dataclasses as dicts and tuples as lists; what is None, TOML leaves out."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return {name: plain(field) for name, field in fields.items() if field is not None}
    return [plain(item) for item in value] if isinstance(value, tuple) else value


def save_config(config: Config, path: Path) -> None:
    """Write every setting to a TOML file, whole or not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(tomli_w.dumps(to_dict(config)), encoding="utf-8")
    temporary.replace(path)


def load_config(path: str | Path | None = None, overrides: dict[str, Any] | None = None) -> Config:
    """Return the defaults, changed by a TOML file and then by dotted `overrides`.

    Raises `ConfigError` naming the file, the key, what it got and what it expected.
    """
    values: dict[str, Any] = {}
    where = "overrides"
    if path is not None:
        where = str(path)
        values = read_toml(Path(path))
    for dotted, value in (overrides or {}).items():
        section = values
        *parents, last = dotted.split(".")
        for parent in parents:
            section = section.setdefault(parent, {})
            if not isinstance(section, dict):
                raise ConfigError(f"overrides: {dotted}: {parent} is a value, not a section")
        section[last] = value
    return config_from_dict(values, where)


def config_from_dict(values: dict[str, Any], where: str) -> Config:
    """Return the `Config` of nested plain values; `where` names their origin in errors."""
    try:
        return build(Config, values, where)
    except ConfigError as error:
        prefix = "" if str(error).startswith(where) else f"{where}: "
        raise ConfigError(f"{prefix}{error}") from None


def read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        near = sorted(str(p) for p in path.parent.glob("*.toml")) if path.parent.is_dir() else []
        hint = f"; there are: {', '.join(near)}" if near else ""
        raise ConfigError(f"{path}: no such config file{hint}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None


def build(cls: type[T], values: dict[str, Any], where: str, prefix: str = "") -> T:
    """Return the dataclass `cls` with the given values, checking names and types key by key."""
    hints = typing.get_type_hints(cls)
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        dotted = f"{prefix}{key}"
        if key not in hints:
            near = difflib.get_close_matches(key, hints, n=1)
            hint = f"; did you mean {prefix}{near[0]}?" if near else "."
            raise ConfigError(
                f"{where}: unknown key {dotted}{hint} Valid here: {', '.join(sorted(hints))}"
            )
        if dataclasses.is_dataclass(hints[key]):
            if not isinstance(value, dict):
                raise ConfigError(f"{where}: {dotted}: got {value!r}, expected a table")
            arguments[key] = build(typing.cast(type, hints[key]), value, where, f"{dotted}.")
        else:
            arguments[key] = _typed(hints[key], value, f"{where}: {dotted}")
    fields = dataclasses.fields(typing.cast(Any, cls))
    needed = [f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING]
    if missing := [f"{prefix}{name}" for name in needed if name not in arguments]:
        raise ConfigError(f"{where}: there is no {', '.join(missing)}")
    return cls(**arguments)


def _typed(hint: Any, value: Any, where: str) -> Any:
    """Return `value` as the type `hint`; an integer may stand for a float, a list for a tuple."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value not in args:
            near = difflib.get_close_matches(str(value), [str(a) for a in args], n=1)
            hint_text = f"; did you mean {near[0]!r}?" if near else ""
            expected = ", ".join(repr(a) for a in args)
            raise ConfigError(f"{where}: got {value!r}, expected one of {expected}{hint_text}")
        return value
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_typed(args[0], item, where) for item in value)
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return build(typing.cast(type, hint), value, where)
    if origin is dict and isinstance(value, dict):
        return {str(k): _typed(args[1], v, f"{where}.{k}") for k, v in value.items()}
    if origin in (typing.Union, types.UnionType):
        if isinstance(value, args):
            return value
    elif hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    elif isinstance(hint, type) and type(value) is hint:
        return value
    expected = getattr(hint, "__name__", str(hint))
    raise ConfigError(f"{where}: got {value!r} ({type(value).__name__}), expected {expected}")
