"""Values that are checked where they enter: settings in Python, and what is read from files.

pydantic does the checking. This module says what counts as right (no string for a number, no
unknown key) and turns its errors into lines of this package: what, where, got, expected, what to
do, and the nearest known name.
"""

import dataclasses
import functools
import json
import types
import typing
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any, Literal, TypeVar, dataclass_transform

import pydantic
from pydantic import ConfigDict, GetCoreSchemaHandler, TypeAdapter, ValidationError
from pydantic_core import CoreSchema, ErrorDetails, core_schema

from marl import UserError

T = TypeVar("T")


class ConfigError(UserError):
    """A setting is unknown, of the wrong type, or out of range."""


@dataclasses.dataclass(frozen=True)
class Range:
    """Bounds of a number, both included: ``Annotated[int, Range(1, 1e6)]``.

    An integer may also be written as a whole float, e.g. 1e6.
    """

    low: float
    high: float

    def __str__(self) -> str:
        return f"a number from {self.low:g} to {self.high:g}"

    def __get_pydantic_core_schema__(self, kind: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        if kind is int:
            whole = core_schema.int_schema(ge=int(self.low), le=int(self.high), strict=True)
            return core_schema.no_info_before_validator_function(_whole, whole)
        return core_schema.float_schema(ge=self.low, le=self.high, strict=True)


@dataclasses.dataclass(frozen=True, eq=False)  # annotations must be hashable
class Hints:
    """What to say about words that a choice does not know: ``Annotated[Algorithm, Hints(...)]``."""

    words: dict[str, str]


@dataclass_transform(
    frozen_default=True, kw_only_default=True, field_specifiers=(dataclasses.field,)
)
def settings(prefix: str = "") -> Callable[[type[T]], type[T]]:
    """Return a decorator that makes a class a frozen dataclass whose values are checked.

    Whatever is wrong raises `ConfigError`, which names the field after `prefix`: that of a section,
    such as ``learner.``, or ``--`` for options of the command line.
    """

    def decorate(cls: type[T]) -> type[T]:
        made: Any = pydantic.dataclasses.dataclass(
            cls, frozen=True, kw_only=True, config=ConfigDict(strict=True, extra="forbid")
        )
        init = made.__init__

        @functools.wraps(init)
        def checked_init(self: Any, *positional: Any, **values: Any) -> None:
            try:
                init(self, *positional, **values)
            except ValidationError as error:
                raise ConfigError("\n".join(explained(error, made, prefix))) from None

        made.__init__ = checked_init
        return typing.cast(type[T], made)

    return decorate


def build(cls: type[T], values: dict[str, Any], where: str, prefix: str = "") -> T:
    """Return the dataclass `cls` of nested plain values, as they come from TOML or JSON.

    Lists stand for tuples and tables for dataclasses; an integer may stand for a float. Raises
    `ConfigError` with one line for each fault; `where` names the origin of the values, and keys
    stand there after `prefix`.
    """
    # JSON's rules are pydantic's strict rules plus lists for tuples and tables for dataclasses.
    text = json.dumps(values, default=str)
    try:
        adapter: TypeAdapter[T] = _adapter(typing.cast(Any, cls))
        return adapter.validate_json(text, strict=True, extra="forbid")
    except ValidationError as error:
        lines = explained(error, cls, prefix)
    except ConfigError as error:  # of settings that contradict each other
        lines = str(error).splitlines()
    raise ConfigError("\n".join(f"{where}: {line}" for line in lines))


def explained(error: ValidationError, cls: type, prefix: str = "") -> list[str]:
    """Return one line for each fault that pydantic has found in values for `cls`."""
    faults = error.errors(include_url=False)
    # A list whose items are wrong also counts as too short.
    real = [one for one in faults if one["type"] != "too_short" or not one["input"]]
    # Each member of a union has its own error about one value.
    return list(dict.fromkeys(_line(fault, cls, prefix) for fault in real))


@functools.cache
def _adapter(cls: Any) -> TypeAdapter[Any]:
    return TypeAdapter(cls)


def _line(detail: ErrorDetails, cls: type, prefix: str) -> str:
    """Return what pydantic says about one value, in the words of this package."""
    kind, got = detail["type"], detail["input"]
    names, owner, hint = _place(cls, detail["loc"])
    if not names:
        return f"{detail['msg']}: {str(got)[:80]!r}"
    key = prefix + ".".join(names)
    if prefix == "--":
        key = key.replace("_", "-")
    if kind == "unexpected_keyword_argument":
        known = sorted(field.name for field in dataclasses.fields(owner))
        near = get_close_matches(names[-1], known, n=1)
        suggestion = f"; did you mean {key.removesuffix(names[-1])}{near[0]}?" if near else "."
        return f"unknown key {key}{suggestion} Valid here: {', '.join(known)}"
    if kind == "missing":
        return f"there is no {key}"
    if kind in ("greater_than_equal", "less_than_equal"):
        return f"{key}: got {got!r}, expected {' and '.join(map(str, ranges_in(hint)))}"
    if kind == "literal_error":
        choices = _choices(hint)
        near = get_close_matches(str(got), choices, n=1)
        suggestion = f"; did you mean {near[0]!r}?" if near else ""
        suggestion = f"; {hint_about(got, hint)}" if hint_about(got, hint) else suggestion
        expected = ", ".join(map(repr, choices))
        return f"{key}: got {got!r}, expected one of {expected}{suggestion}"
    if dataclasses.is_dataclass(hint) and not isinstance(got, dict):
        return f"{key}: got {got!r}, expected a table"
    if kind == "too_short":
        least = detail["ctx"]["min_length"]
        return f"{key}: got {got!r}, expected {_in_words(hint)}, at least {least}"
    return f"{key}: got {got!r} ({type(got).__name__}), expected {_in_words(hint)}"


def hint_about(got: Any, hint: Any) -> str:
    """Return what an annotation's `Hints` say about a word; empty if nothing."""
    known = [item for item in getattr(hint, "__metadata__", ()) if isinstance(item, Hints)]
    return "".join(hints.words.get(str(got).lower(), "") for hints in known)


def ranges_in(hint: Any) -> list[Range]:
    """Return the `Range` of an annotated number; empty if it has none."""
    return [item for item in getattr(hint, "__metadata__", ()) if isinstance(item, Range)]


def takes_integers(cls: type, dotted: str) -> bool:
    """Return whether a setting, named as in ``learner.epochs``, is an integer."""
    return _bare(_place(cls, tuple(dotted.split(".")))[2]) is int


def _place(cls: type, loc: tuple[int | str, ...]) -> tuple[list[str], Any, Any]:
    """Return the user's names on the way to an error, the last dataclass there, and the annotation.

    Items of a list have no name, since the value shows which is meant; what pydantic says after a
    union is which of its members it has tried.
    """
    names: list[str] = []
    owner: Any = cls
    hint: Any = cls
    for step in loc:
        bare = _bare(hint)
        origin, members = typing.get_origin(bare), typing.get_args(bare)
        if dataclasses.is_dataclass(bare):
            owner = bare
            hint = _present(typing.get_type_hints(bare, include_extras=True).get(str(step)))
            names.append(str(step))
        elif origin is tuple:
            hint = members[0]
        elif origin is dict:
            hint = members[1]
            names.append(str(step))
        else:
            break
    return names, owner, hint


def _choices(hint: Any) -> list[str]:
    """Return what an annotation allows that is a `Literal` or a union of them."""
    bare = _bare(hint)
    members = typing.get_args(bare)
    if typing.get_origin(bare) is Literal:
        return [str(member) for member in members]
    return [choice for member in members for choice in _choices(member)]


def _in_words(hint: Any) -> str:
    """Return what an annotation takes."""
    bare = _bare(hint)
    origin, members = typing.get_origin(bare), typing.get_args(bare)
    if origin is tuple:
        return f"a list of {_in_words(members[0])}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_in_words(member) for member in members)
    return bare.__name__ if isinstance(bare, type) else str(bare)


def _present(hint: Any) -> Any:
    """Return ``X`` of an annotation ``X | None``, and any other as it is."""
    members = [one for one in typing.get_args(hint) if one is not types.NoneType]
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return members[0] if is_union and len(members) == 1 else hint


def _bare(hint: Any) -> Any:
    """Return an annotation without its metadata."""
    return typing.get_args(hint)[0] if hasattr(hint, "__metadata__") else hint


def _whole(value: Any) -> Any:
    """Return a whole float as the integer that it stands for."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
