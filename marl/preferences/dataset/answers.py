"""Two files of a preference dataset: ``answers.jsonl`` and ``questions.json``.

Answers are one JSON object a line, appended only. An answer is on the disk before
`AnswerLog.append` returns. An undo is a line of its own that withdraws its source's latest answer,
so that nothing is ever rewritten.

Questions are the pairs that a run would like to have answered, written atomically at every change.
A dataset without this file has no questions of its own: any pair of it may be shown.
"""

import json
import math
import os
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, FailFast, Tag, TypeAdapter

from marl.preferences.dataset.untrusted import (
    MAX_NUMBER,
    REMEDY,
    DatasetError,
    parsed,
    read_file,
    warn_skipped,
)
from marl.utils.files import OutputError, atomic_write, check_own_file, make_folder, sync_folder
from marl.utils.text import one_line

Pair = tuple[int, int]
"""Numbers of two episodes, in the order in which they are, or are to be, shown."""

_MAX_LINE = 2**16
_MAX_QUESTIONS = 2**24


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a source prefers, in the order in which it saw the two episodes."""

    first: int
    """Number of an episode in the dataset."""
    second: int
    label: float | None
    """P(first preferred): 1 first, 0 second, 0.5 tie; None: skipped."""
    source: str
    """Who answered, e.g. ``person:ann`` or ``rule:return``."""
    at: str
    """When, in ISO format."""
    seconds: float | None = None
    """How long it took; None: not measured."""
    both_bad: bool = False
    """Whether a tie was said to be one of two bad episodes; nothing is trained on it."""

    def __post_init__(self) -> None:
        _check_pair(self.first, self.second)
        if self.label is not None and not 0.0 <= self.label <= 1.0:
            raise ValueError(f"label is {self.label!r}, expected null or a number in [0, 1]")
        if self.seconds is not None and not 0.0 <= self.seconds < math.inf:
            raise ValueError(f"seconds is {self.seconds!r}, expected null or a number from 0")
        if not (self.source and self.source.isprintable() and self.at and self.at.isprintable()):
            source, at = one_line(repr(self.source)), one_line(repr(self.at))
            raise ValueError(f"source is {source} and at is {at}, expected printable texts")


@dataclass(frozen=True, kw_only=True)
class _Undo:
    """Withdraws the latest answer of a source that still stands."""

    undo: Literal[True] = True
    source: str
    at: str = ""


_LINE: Any = TypeAdapter(
    Annotated[
        Annotated[Answer, Tag("answer")] | Annotated[_Undo, Tag("undo")],
        Discriminator(lambda line: "undo" if _is_undo(line) else "answer"),
    ]
)


def _is_undo(line: object) -> bool:
    return isinstance(line, dict) and line.get("undo") is True


@dataclass(frozen=True, kw_only=True)
class _Questions:
    """The content of ``questions.json``."""

    open: Annotated[list[Pair], FailFast()]

    def __post_init__(self) -> None:
        for pair in self.open:
            _check_pair(*pair)


_QUESTIONS = TypeAdapter(_Questions)


class AnswerLog:
    """Reads and appends to one file. Several processes may append to it and read it at once."""

    def __init__(self, path: Path, *, skip_damaged: bool = False) -> None:
        """`skip_damaged` leaves damaged lines in the middle out, with a warning, instead of
        raising `DatasetError`."""
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
        """Write an answer; it is on the disk when this returns."""
        self._write(_line_of(answer))

    def extend(self, answers: Iterable[Answer]) -> None:
        """Write several answers at once; they are on the disk when this returns."""
        self._write(*map(_line_of, answers))

    def undo(self, source: str) -> Answer | None:
        """Withdraw the latest answer of a source and return it; None if none is left."""
        latest = next((a for a in reversed(self.answers()) if a.source == source), None)
        if latest is not None:
            self._write(asdict(_Undo(source=source, at=now())))
        return latest

    def _write(self, *lines: dict[str, Any]) -> None:
        """Append lines in a single write, after completing what a killed write has left.

        A disk that fills up takes a part of it first and says so with the next.
        """
        self.check_own()
        is_new = not self.path.exists()
        if not is_new:
            self._mend()
        with self.path.open("ab", buffering=0) as file:
            texts = (json.dumps(line, ensure_ascii=False, allow_nan=False) for line in lines)
            rest = memoryview("".join(f"{text}\n" for text in texts).encode())
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
        if is_new:
            sync_folder(self.path.parent)

    def check_own(self) -> None:
        """Raise `DatasetError` where what is appended would go elsewhere, by a link."""
        for path in (self.path, self._aside):
            try:
                check_own_file(path)
            except OutputError as error:
                raise DatasetError(str(error)) from None

    @property
    def _aside(self) -> Path:
        """Where damaged lines are moved to."""
        return self.path.with_name(f"{self.path.name}.damaged")

    def _mend(self) -> None:
        """Complete a last line that lacks its end, and move one that is damaged to a file aside.

        Left where it is, it would be a damaged line in the middle once another follows.
        """
        content = self._content()
        body = content[:-1] if content.endswith(b"\n") else content
        tail = body[body.rfind(b"\n") + 1 :]
        if content and isinstance(_parsed(tail), str):
            with self._aside.open("ab") as aside:
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
            self._lines = self._parse(self._content())
            self._stamp = stamp
        return self._lines

    def _content(self) -> bytes:
        """Return the whole file."""
        if not self.path.is_file():
            raise DatasetError(f"{self.path} is no file; rename it")
        try:
            return self.path.read_bytes()
        except OSError as error:
            raise DatasetError(f"{self.path} cannot be read: {error.strerror}") from None

    def _parse(self, content: bytes) -> list[Answer | _Undo]:
        lines = content.split(b"\n")
        if lines[-1] == b"":
            lines.pop()
        good: list[Answer | _Undo] = []
        for number, line in enumerate(lines, start=1):
            found = _parsed(line)
            if not isinstance(found, str):
                good.append(found)
            elif number == len(lines):
                warnings.warn(
                    f"{self.path}, line {number}, the last, is damaged ({found}), as after a kill "
                    "while it was written; it is ignored",
                    stacklevel=4,
                )
            elif self._skip_damaged:
                warnings.warn(
                    f"{self.path}, line {number}: skipped, it is damaged ({found})", stacklevel=4
                )
            else:
                raise DatasetError(
                    f"{self.path}, line {number} of {len(lines)}: expected an answer or an undo "
                    f"as a JSON object, but {found}. Repair that line, or leave damaged lines out "
                    "by --skip-damaged; all others can then be read"
                )
        return good


def _line_of(answer: Answer) -> dict[str, Any]:
    """Return an answer as it is written."""
    line = asdict(answer)
    return line if answer.both_bad else {k: v for k, v in line.items() if k != "both_bad"}


def now() -> str:
    """Return the time of day in UTC, in ISO format."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def write_questions(folder: Path, pairs: list[Pair]) -> None:
    """Write the open questions, the most urgent first."""
    make_folder(folder)
    text = json.dumps({"open": [list(pair) for pair in pairs]})
    atomic_write(folder / "questions.json", text.encode())


def read_questions(folder: Path, *, skip_damaged: bool = False) -> list[Pair] | None:
    """Return the open questions, the most urgent first; None: the dataset has none of its own.

    `skip_damaged`: a damaged file counts as none, with a warning.
    """
    path = folder / "questions.json"
    if not path.exists():
        return None
    try:
        questions: _Questions = parsed(_QUESTIONS, read_file(path, _MAX_QUESTIONS))
        return questions.open
    except ValueError as error:
        reason = str(error)
    damage = DatasetError(f"{path} is damaged ({reason}); {REMEDY}; training writes it anew")
    if not skip_damaged:
        raise damage
    warn_skipped(damage)
    return None


def _check_pair(first: int, second: int) -> None:
    """Raise `ValueError` unless these are the numbers of two episodes."""
    if not (0 <= first <= MAX_NUMBER and 0 <= second <= MAX_NUMBER and first != second):
        raise ValueError(
            f"first and second are {one_line(str(first))} and {one_line(str(second))}, expected "
            f"the numbers of two episodes, from 0 to {MAX_NUMBER}"
        )


def _parsed(line: bytes) -> Answer | _Undo | str:
    """Return what a line says, or else what is wrong with it."""
    if len(line) > _MAX_LINE:
        return f"it has {len(line):,} bytes, more than {_MAX_LINE:,}"
    try:
        found: Answer | _Undo = parsed(_LINE, line, tags=1)
        return found
    except ValueError as error:
        return f"{error} in {one_line(repr(line))}"
