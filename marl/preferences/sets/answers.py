"""The answers of a preference set: ``answers.jsonl``, one JSON object a line, appended only.

An answer is on the disk before `AnswerLog.append` comes back. An undo is a line of its own that
withdraws its source's latest answer, so that nothing is ever rewritten.
"""

import json
import math
import os
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from marl.disk import sync_folder


class DamagedLogError(ValueError):
    """A line of a log, other than the last, is no answer."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a source prefers, in the order in which it saw the two episodes."""

    first: int
    """Number of an episode in the set."""
    second: int
    label: float | None
    """P(first preferred): 1 first, 0 second, 0.5 tie; None: skipped."""
    source: str
    """Who answered, e.g. ``person:ann`` or ``rule:return``."""
    at: str
    """When, in ISO format."""
    seconds: float | None = None
    """How long it took; None: not measured."""

    def __post_init__(self) -> None:
        if self.first < 0 or self.second < 0 or self.first == self.second:
            raise ValueError(
                f"first and second are {self.first} and {self.second}, expected two episodes' "
                "numbers from 0"
            )
        if self.label is not None and not 0.0 <= self.label <= 1.0:
            raise ValueError(f"label is {self.label!r}, expected null or a number in [0, 1]")
        if self.seconds is not None and not 0.0 <= self.seconds < math.inf:
            raise ValueError(f"seconds is {self.seconds!r}, expected null or a number from 0")
        if not self.source or not self.at:
            raise ValueError(f"source is {self.source!r} and at is {self.at!r}, expected texts")


@dataclass(frozen=True, kw_only=True)
class _Undo:
    """Withdraws the latest answer of a source that still stands."""

    source: str


class AnswerLog:
    """Reads and appends to one file. Several processes may append to it and read it at once."""

    def __init__(self, path: Path, *, skip_damaged: bool = False) -> None:
        """`skip_damaged` leaves damaged lines in the middle out, with a warning, instead of
        raising `DamagedLogError`."""
        self.path = path
        self._skip_damaged = skip_damaged
        self._lines: list[Answer | _Undo] = []
        self._stamp: tuple[int, int] | None = None

    def answers(self) -> list[Answer]:
        """Return all answers that were not withdrawn, in the order in which they were given."""
        standing: list[Answer] = []
        for line in self._read():
            if isinstance(line, Answer):
                standing.append(line)
            elif mine := [i for i, answer in enumerate(standing) if answer.source == line.source]:
                del standing[mine[-1]]
        return standing

    def num_lines(self, source: str) -> int:
        """Return how many answers and undos a source ever wrote: it grows with each of them."""
        return sum(line.source == source for line in self._read())

    def append(self, answer: Answer) -> None:
        """Write an answer; it is on the disk when this comes back."""
        self._write(asdict(answer))

    def extend(self, answers: Iterable[Answer]) -> None:
        """Write several answers at once; they are on the disk when this comes back."""
        self._write(*map(asdict, answers))

    def undo(self, source: str) -> Answer | None:
        """Withdraw the latest answer of a source and return it; None if none is left."""
        latest = next((a for a in reversed(self.answers()) if a.source == source), None)
        if latest is not None:
            self._write({"undo": True, "source": source, "at": now()})
        return latest

    def _write(self, *lines: dict[str, Any]) -> None:
        """Append lines in a single write, after what a kill has left of the one before."""
        is_new = not self.path.exists()
        if not is_new:
            self._mend()
        with self.path.open("ab", buffering=0) as file:
            texts = (json.dumps(line, ensure_ascii=False, allow_nan=False) for line in lines)
            file.write("".join(f"{text}\n" for text in texts).encode())
            os.fsync(file.fileno())
        if is_new:
            sync_folder(self.path.parent)

    def _mend(self) -> None:
        """Complete a last line that lacks its end, and move one that is damaged to a file aside.

        Left where it is, it would be a damaged line in the middle once another follows.
        """
        content = self.path.read_bytes()
        body = content[:-1] if content.endswith(b"\n") else content
        tail = body[body.rfind(b"\n") + 1 :]
        if content and isinstance(_parsed(tail), str):
            with self.path.with_name(f"{self.path.name}.damaged").open("ab") as aside:
                aside.write(tail + b"\n")
            os.truncate(self.path, len(body) - len(tail))
        elif content and not content.endswith(b"\n"):
            with self.path.open("ab", buffering=0) as file:
                file.write(b"\n")

    def _read(self) -> list[Answer | _Undo]:
        """Return all good lines; the file is read again only when it has changed."""
        if not self.path.exists():
            return []
        status = self.path.stat()
        stamp = (status.st_size, status.st_mtime_ns)
        if stamp != self._stamp:
            self._lines = self._parse(self.path.read_bytes())
            self._stamp = stamp
        return self._lines

    def _parse(self, content: bytes) -> list[Answer | _Undo]:
        lines = content.split(b"\n")
        if lines[-1] == b"":
            lines.pop()
        good: list[Answer | _Undo] = []
        for number, line in enumerate(lines, start=1):
            parsed = _parsed(line)
            if not isinstance(parsed, str):
                good.append(parsed)
            elif number == len(lines):
                warnings.warn(
                    f"{self.path}, line {number}, the last, is damaged ({parsed}), as after a kill "
                    "while it was written; it is ignored",
                    stacklevel=4,
                )
            elif self._skip_damaged:
                warnings.warn(
                    f"{self.path}, line {number}: skipped, it is damaged ({parsed})", stacklevel=4
                )
            else:
                raise DamagedLogError(
                    f"{self.path}, line {number} of {len(lines)}: expected an answer or an undo "
                    f"as a JSON object, but {parsed}. Repair that line, or say that damaged lines "
                    "are to be skipped; all others can then be read"
                )
        return good


def now() -> str:
    """Return the time of day in UTC, in ISO format."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _parsed(line: bytes) -> Answer | _Undo | str:
    """Return what a line says, or else what is wrong with it."""
    try:
        fields = json.loads(line)
    except ValueError:
        return f"it reads {line[:40]!r}"
    if not isinstance(fields, dict):
        return f"it is a {type(fields).__name__}"
    try:
        if fields.get("undo") is True:
            return _Undo(source=_typed(fields, "source", str))
        label, seconds = fields["label"], fields.get("seconds")
        return Answer(
            first=_typed(fields, "first", int),
            second=_typed(fields, "second", int),
            label=None if label is None else float(_typed(fields, "label", int, float)),
            source=_typed(fields, "source", str),
            at=_typed(fields, "at", str),
            seconds=None if seconds is None else float(_typed(fields, "seconds", int, float)),
        )
    except KeyError as error:
        return f"it has no {error.args[0]!r}"
    except ValueError as error:
        return str(error)


def _typed(fields: dict[str, Any], name: str, *kinds: type) -> Any:
    """Return a field's value, or raise `ValueError` if it is of none of the kinds."""
    value = fields[name]
    if type(value) not in kinds:
        raise ValueError(f"{name} is {value!r}, expected {' or '.join(k.__name__ for k in kinds)}")
    return value
