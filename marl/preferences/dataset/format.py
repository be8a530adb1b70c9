"""The pairs of a dataset that a run would like to have answered: ``questions.json``.

Written whole by training at every change, read by the page. A dataset without this file has no
questions of its own: any pair of it may be shown.
"""

import io
import json
import math
import os
import warnings
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tomli_w

from envs import EnvSpec
from marl.config import ConfigError, Option
from marl.config.io import plain, read_toml
from marl.config.validation import build
from marl.utils.checkpoint import sync_folder, write_whole

# What a preference dataset says of itself: ``dataset.toml``.


FORMAT = 1
"""Version of the format that this program writes, and the newest that it reads."""


class DatasetError(ValueError):
    """A preference dataset, or an episode in it, is not as the format says."""


@dataclass(frozen=True, kw_only=True)
class DatasetEnvironment:
    """How to make the environment in which the episodes were played."""

    name: str
    """As in ``env.name``; foreign data may name whatever it likes."""
    options: dict[str, Option] = field(default_factory=dict)
    """As in ``env.options``."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """All that is needed to interpret the arrays of a dataset's episodes."""

    format: int = FORMAT
    environment: DatasetEnvironment
    spec: EnvSpec
    """Sizes, kinds and facts; `num_envs` says nothing and is 1."""
    origin: dict[str, Option] = field(default_factory=dict)
    """Where the episodes come from, in free words, e.g. ``run``, ``algorithm``, ``steps``."""


def manifest_path(folder: Path) -> Path:
    """Return where a dataset says what it is; a folder without this file is none."""
    return folder / "dataset.toml"


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``dataset.toml``, whole or not at all."""
    single = replace(manifest, spec=replace(manifest.spec, num_envs=1))
    write_whole(manifest_path(folder), tomli_w.dumps(plain(single)).encode())


def read_manifest(folder: Path) -> Manifest:
    """Return a dataset's manifest, or raise `DatasetError` if it cannot be read."""
    path = manifest_path(folder)
    if not path.is_file():
        raise DatasetError(
            f"{folder} is no preference dataset: it has no {path.name}; `marl export RUN DIR` "
            "makes one"
        )
    try:
        values = read_toml(path)
        version = values.get("format")
        if type(version) is not int or version < 1:
            raise DatasetError(
                f"{path}: format is {version!r}, expected a number from 1 to {FORMAT}"
            )
        if version > FORMAT:
            raise DatasetError(
                f"{path}: the dataset has format {version}, this program reads up to {FORMAT}; use "
                "the release that wrote it, or a newer one"
            )
        manifest = build(Manifest, values, str(path))
    except ConfigError as error:
        raise DatasetError(str(error)) from error
    _check_spec(manifest.spec, path)
    return manifest


def _check_spec(spec: EnvSpec, path: Path) -> None:
    """Raise `DatasetError` for sizes that no episode can have."""
    agents, actions = len(spec.obs_sizes), len(spec.action_sizes)
    if agents == 0 or agents != actions:
        raise DatasetError(
            f"{path}: spec.obs_sizes has {agents} agents and spec.action_sizes {actions}; expected "
            "one entry of each per agent, and at least one agent"
        )
    sizes = {
        "obs_sizes": min(spec.obs_sizes),
        "state_size": spec.state_size,
        "action_sizes": min(spec.action_sizes),
        "max_steps": spec.max_steps,
    }
    for name, size in sizes.items():
        if size < 1:
            raise DatasetError(f"{path}: spec.{name}: got {size}, expected at least 1")


# One finished episode of a preference dataset: ``episodes/000003.npz``.
#
# Axes: L steps, N agents; O, S, A features, F facts.


Array = npt.NDArray[Any]
_KINDS: dict[type[np.generic], str] = {np.float32: "fiu", np.int64: "iu", np.bool_: "b"}
"""Kinds of NumPy types that may stand for each of the format's."""
_DAMAGE = (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True, kw_only=True)
class EpisodeRecord:
    """A finished episode as arrays, in the types that `EnvStep` and `Transitions` have."""

    obs: Array
    """(L, N, O) float32: what each agent saw before each step, zero beyond its own size."""
    state: Array
    """(L, S) float32: the team's state before each step."""
    actions: Array
    """(L, N) int64, or (L, N, A) float32: what was done."""
    final_obs: Array
    """(N, O) float32: what the last step led to."""
    final_state: Array
    """(S) float32."""
    episode_return: float
    """Sum of the task's rewards."""
    terminated: bool
    """Whether the task ended, rather than being interrupted."""
    facts_on_the_way: Array | None = None
    """(L, F) float32: what was known after each step; None where F is 0."""
    facts: Array | None = None
    """(F) float32: what was known at the end; None: the last row of `facts_on_the_way`."""
    alive: Array | None = None
    """(L, N) bool, where agents die."""
    final_alive: Array | None = None
    """(N) bool, where agents die: who would have gone on after the last step; None: the last row of
    `alive`."""
    action_mask: Array | None = None
    """(L, N, A) bool, True where an action was legal, where some are not."""

    @property
    def length(self) -> int:
        """L, the steps of the episode."""
        return len(self.state)


_SAVED_AS = {"episode_return": "return"}
"""Names in the file that are no names in Python."""


def episode_path(folder: Path, number: int) -> Path:
    """Return where a dataset keeps an episode."""
    return folder / "episodes" / f"{number:06d}.npz"


def episode_numbers(folder: Path) -> list[int]:
    """Return the numbers of a dataset's episodes, in order."""
    names = (path.stem for path in folder.glob("episodes/*.npz"))
    return sorted(int(name) for name in names if name.isdecimal())


def checked_episode(record: EpisodeRecord, spec: EnvSpec, where: str) -> EpisodeRecord:
    """Return the episode in the format's types; `DatasetError` names the array at fault."""
    if not 1 <= record.length <= spec.max_steps:
        raise DatasetError(
            f"{where}: state has {record.length} steps, expected 1 to {spec.max_steps} "
            "(spec.max_steps)"
        )
    wanted = _expected(spec, record.length)
    arrays: dict[str, Any] = {}
    for name, (shape, dtype) in wanted.items():
        given = getattr(record, name)
        if given is None and 0 in shape:
            given = np.zeros(shape, dtype)
        if given is None and name in _ENDS:
            given = arrays[_ENDS[name]][-1]
        if given is None:
            raise DatasetError(f"{where}: {name} is missing; {spec.name} needs shape {shape}")
        arrays[name] = _typed(np.asarray(given), shape, dtype, f"{where}: {name}")
    optional = [f.name for f in fields(record) if f.name not in (*wanted, *_SCALARS)]
    for name in optional:
        if getattr(record, name) is not None:
            raise DatasetError(
                f"{where}: has {name}, but dataset.toml says that {spec.name} has none"
            )
    if spec.action_kind == "discrete":
        low, high = int(arrays["actions"].min()), int(arrays["actions"].max())
        if low < 0 or high >= spec.action_size:
            raise DatasetError(
                f"{where}: actions are from {low} to {high}, expected 0 to {spec.action_size - 1}"
            )
    value = float(record.episode_return)
    if not np.isfinite(value):
        raise DatasetError(f"{where}: return is {value}, expected a finite number")
    return EpisodeRecord(**arrays, episode_return=value, terminated=bool(record.terminated))


def write_episode(folder: Path, number: int, record: EpisodeRecord) -> None:
    """Write a checked episode into a dataset, whole or not at all."""
    path = episode_path(folder, number)
    path.parent.mkdir(parents=True, exist_ok=True)
    values = {f.name: getattr(record, f.name) for f in fields(record)}
    buffer = io.BytesIO()
    saved = {_SAVED_AS.get(k, k): np.asarray(v) for k, v in values.items() if v is not None}
    np.savez_compressed(buffer, allow_pickle=False, **saved)
    write_whole(path, buffer.getvalue())


def read_episode(folder: Path, number: int, spec: EnvSpec) -> EpisodeRecord:
    """Return a checked episode of a dataset, or raise `DatasetError`."""
    path = episode_path(folder, number)
    if not path.is_file():
        raise DatasetError(f"{path} is missing: the dataset has no episode {number}")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        known = {_SAVED_AS.get(f.name, f.name): f.name for f in fields(EpisodeRecord)}
        values = {name: arrays[saved] for saved, name in known.items() if saved in arrays}
        values |= {name: values[name].item() for name in _SCALARS if name in values}
    except _DAMAGE as error:
        raise DatasetError(
            f"{path} is damaged ({type(error).__name__}: {error}); restore it, or delete it and "
            "its answers are left out"
        ) from error
    missing = [saved for saved, name in known.items() if name in _NEEDED and name not in values]
    if missing:
        raise DatasetError(
            f"{path} has no {', '.join(missing)}; is it an episode of a preference dataset?"
        )
    return checked_episode(EpisodeRecord(**values), spec, str(path))


_SCALARS = ("episode_return", "terminated")
_ENDS = {"facts": "facts_on_the_way", "final_alive": "alive"}
"""What may be left out, and whose last row stands for it."""
_NEEDED = ("obs", "state", "actions", "final_obs", "final_state", *_SCALARS)


def _expected(spec: EnvSpec, length: int) -> dict[str, tuple[tuple[int, ...], type[np.generic]]]:
    """Return shape and type of each array of an episode of so many steps."""
    team = (length, spec.num_agents)
    discrete = spec.action_kind == "discrete"
    shapes: dict[str, tuple[tuple[int, ...], type[np.generic]]] = {
        "obs": ((*team, spec.obs_size), np.float32),
        "state": ((length, spec.state_size), np.float32),
        "actions": (team, np.int64) if discrete else ((*team, spec.action_size), np.float32),
        "final_obs": ((spec.num_agents, spec.obs_size), np.float32),
        "final_state": ((spec.state_size,), np.float32),
        "facts_on_the_way": ((length, len(spec.facts)), np.float32),
        "facts": ((len(spec.facts),), np.float32),
    }
    if spec.agents_die:
        shapes |= {"alive": (team, np.bool_), "final_alive": ((spec.num_agents,), np.bool_)}
    if spec.masks_actions:
        shapes["action_mask"] = ((*team, spec.action_size), np.bool_)
    return shapes


def _typed(array: Array, shape: tuple[int, ...], dtype: type[np.generic], where: str) -> Array:
    """Return an array in the wanted type, or raise `DatasetError`; integers pass as floats."""
    if array.shape != shape:
        raise DatasetError(f"{where} has shape {array.shape}, expected {shape}")
    if array.dtype.kind not in _KINDS[dtype]:
        raise DatasetError(f"{where} has dtype {array.dtype}, expected {np.dtype(dtype)}")
    with np.errstate(over="ignore"):  # what overflows is infinite, and refused
        made = np.ascontiguousarray(array, dtype)
    if made.dtype.kind == "f" and not np.isfinite(made).all():
        raise DatasetError(f"{where} holds NaN or infinity")
    return made


# The answers of a preference dataset: ``answers.jsonl``, one JSON object a line, appended only.
#
# An answer is on the disk before `AnswerLog.append` comes back. An undo is a line of its own that
# withdraws its source's latest answer, so that nothing is ever rewritten.


class DamagedLogError(ValueError):
    """A line of a log, other than the last, is no answer."""


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
            return _Undo(source=_typed_field(fields, "source", str))
        label, seconds = fields["label"], fields.get("seconds")
        return Answer(
            first=_typed_field(fields, "first", int),
            second=_typed_field(fields, "second", int),
            label=None if label is None else float(_typed_field(fields, "label", int, float)),
            source=_typed_field(fields, "source", str),
            at=_typed_field(fields, "at", str),
            seconds=None if seconds is None else float(_typed_field(fields, "seconds", int, float)),
        )
    except KeyError as error:
        return f"it has no {error.args[0]!r}"
    except ValueError as error:
        return str(error)


def _typed_field(fields: dict[str, Any], name: str, *kinds: type) -> Any:
    """Return a field's value, or raise `ValueError` if it is of none of the kinds."""
    value = fields[name]
    if type(value) not in kinds:
        raise ValueError(f"{name} is {value!r}, expected {' or '.join(k.__name__ for k in kinds)}")
    return value


Pair = tuple[int, int]
"""Numbers of two episodes, in the order in which they are to be shown."""


class QuestionsError(ValueError):
    """A dataset's questions cannot be read."""


def write_questions(folder: Path, pairs: list[Pair]) -> None:
    """Write the open questions, the most urgent first."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"open": [list(pair) for pair in pairs]})
    write_whole(folder / "questions.json", text.encode())


def read_questions(folder: Path) -> list[Pair] | None:
    """Return the open questions, the most urgent first; None: the dataset has none of its own."""
    path = folder / "questions.json"
    try:
        content = json.loads(path.read_bytes())
        return [(int(first), int(second)) for first, second in content["open"]]
    except FileNotFoundError:
        return None
    except (LookupError, TypeError, ValueError) as error:
        raise QuestionsError(
            f"{path} is damaged ({error}); delete it, and training writes it anew at its next "
            "question"
        ) from error
