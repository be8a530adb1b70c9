"""Two files of a preference dataset: ``dataset.toml`` and an episode, ``episodes/000003.npz``.

Axes: L steps, N agents; O, S, A features, F facts.
"""

import io
import math
import tomllib
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

from envs import EnvSpec
from envs.validation import Problems, check_layout
from marl.config import ConfigError, Option
from marl.config.io import TOML_FAULTS, plain
from marl.config.validation import build
from marl.preferences.dataset.untrusted import (
    MAX_NUMBER,
    REMEDY,
    Array,
    ArrayArchive,
    ArrayHeader,
    DatasetError,
    numbers_in,
    read_file,
)
from marl.utils.files import atomic_write, make_folder
from marl.utils.text import one_line

FORMAT = 1
"""Version of the format that this program writes, and the newest that it reads."""

_MAX_MANIFEST = 2**20
_MAX_TEXT = 1000
"""Characters of a name or a description in a manifest."""
_LIMITS = {
    "agents": 10_000,
    "facts": 1000,
    "obs_sizes": 1_000_000,
    "state_size": 1_000_000,
    "action_sizes": 1_000_000,
    "max_steps": 2**31 - 1,
}


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
    """Sizes, kinds and facts; `num_envs` is 1."""
    origin: dict[str, Option] = field(default_factory=dict)
    """Where the episodes come from, in free words, e.g. ``run``, ``algorithm``, ``steps``."""


def manifest_path(folder: Path) -> Path:
    """Return the path of a dataset's manifest; a folder without this file is no dataset."""
    return folder / "dataset.toml"


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Check and write ``dataset.toml`` atomically."""
    path = manifest_path(folder)
    single = replace(manifest, spec=replace(manifest.spec, num_envs=1))
    _check_manifest(single, path)
    atomic_write(path, tomli_w.dumps(plain(single)).encode())


def read_manifest(folder: Path) -> Manifest:
    """Return a dataset's manifest, or raise `DatasetError` if it cannot be read."""
    path = manifest_path(folder)
    if not path.is_file():
        raise DatasetError(
            f"{folder} is no preference dataset: it has no {path.name}; `marl export RUN DIR` "
            "makes one"
        )
    content = read_file(path, _MAX_MANIFEST)
    try:
        values = tomllib.loads(content.decode())
    except TOML_FAULTS as error:
        raise DatasetError(f"{path}: not valid TOML: {one_line(str(error), 200)}") from None
    version = values.get("format")
    if type(version) is not int or version < 1:
        got = one_line(repr(version))
        raise DatasetError(f"{path}: format is {got}, expected a number from 1 to {FORMAT}")
    if version > FORMAT:
        raise DatasetError(
            f"{path}: the dataset has format {version}, this program reads up to {FORMAT}; use "
            "the release that wrote it, or a newer one"
        )
    try:
        manifest = build(Manifest, values, str(path))
    except ConfigError as error:
        faults = [one_line(fault, 1000) for fault in str(error).splitlines()]
        raise DatasetError("; ".join(faults)) from None
    _check_manifest(manifest, path)
    return replace(manifest, spec=replace(manifest.spec, num_envs=1))


def _check_manifest(manifest: Manifest, path: Path) -> None:
    """Raise `DatasetError` for sizes that no episode can have, and for texts that are none."""
    spec = manifest.spec
    agents, actions = len(spec.obs_sizes), len(spec.action_sizes)
    if agents == 0 or agents != actions:
        raise DatasetError(
            f"{path}: spec.obs_sizes has {agents} agents and spec.action_sizes {actions}; expected "
            "one entry of each per agent, and at least one agent"
        )
    if len(spec.agent_names) not in (0, agents):
        raise DatasetError(
            f"{path}: spec.agent_names has {len(spec.agent_names)} names; expected {agents}, one "
            "per agent, or none"
        )
    sizes = {
        "agents": (agents,),
        "facts": (len(spec.facts) or 1,),
        "obs_sizes": spec.obs_sizes,
        "state_size": (spec.state_size,),
        "action_sizes": spec.action_sizes,
        "max_steps": (spec.max_steps,),
    }
    for name, counts in sizes.items():
        for count in counts:
            if not 1 <= count <= _LIMITS[name]:
                raise DatasetError(
                    f"{path}: spec.{name}: got {one_line(str(count))}, expected at least 1 and at "
                    f"most {_LIMITS[name]:,}"
                )
    parts = [sum(max(part, 1) for part in each) for each in spec.action_parts]
    if parts != (list(spec.action_sizes) if spec.action_kind == "composite" else []) or any(
        part < 0 for each in spec.action_parts for part in each
    ):
        raise DatasetError(
            f"{path}: spec.action_parts does not fit to spec.action_kind and spec.action_sizes; "
            "expected the parts of every agent's composite action, k for a choice among k columns "
            "and 0 for a number, and nothing of other actions"
        )
    problems = Problems(str(path))
    check_layout(spec, problems)
    if problems:
        raise DatasetError(one_line(problems.sentences()[0], 1000))
    texts = [manifest.environment.name, spec.name, *spec.agent_names]
    texts += [of_list.name for of_list in spec.entities]
    texts += [text for fact in spec.facts for text in (fact.name, fact.meaning, fact.unit)]
    for text in texts:
        if len(text) > _MAX_TEXT or not text.isprintable():
            raise DatasetError(
                f"{path}: a name or description reads {one_line(repr(text))}; expected printable "
                f"text of at most {_MAX_TEXT} characters"
            )


@dataclass(frozen=True, kw_only=True)
class EpisodeRecord:
    """A finished episode as arrays, in the types that `EnvStep` and `Transitions` have."""

    obs: Array
    """(L, N, O) float32: what each agent saw before each step, zero beyond its own size; pictures
    (`EnvSpec.obs_image`) uint8."""
    state: Array
    """(L, S) float32: the team's state before each step; `EnvSpec.state_images` uint8."""
    actions: Array
    """(L, N) int64, or (L, N, A) float32: what was done; choices of composite actions one-hot."""
    final_obs: Array
    """(N, O), as `obs`: what the last step led to."""
    final_state: Array
    """(S), as `state`."""
    episode_return: float
    """Sum of the task's rewards."""
    terminated: bool
    """Whether the task ended, rather than being interrupted."""
    step_facts: Array | None = None
    """(L, F) float32: what was known after each step; None where F is 0."""
    facts: Array | None = None
    """(F) float32: what was known at the end; None: the last row of `step_facts`."""
    alive: Array | None = None
    """(L, N) bool, where agents die."""
    final_alive: Array | None = None
    """(N) bool, where agents die: agents alive after the last step, before the reset; None: the
    last row of `alive`."""
    action_mask: Array | None = None
    """(L, N, A) bool, True where an action was legal, where some are not."""
    demonstration: bool = False
    """Whether it shows how the task is to be done, rather than what some policy did."""

    @property
    def length(self) -> int:
        """L, the steps of the episode."""
        return len(self.state)

    @property
    def num_bytes(self) -> int:
        """Bytes of the arrays."""
        return sum(array.nbytes for array in _arrays(self).values())


_SAVED_AS = {
    f.name: "return" if f.name == "episode_return" else f.name for f in fields(EpisodeRecord)
}
"""Each field's name in the file."""
_SCALARS = ("episode_return", "terminated", "demonstration")
_NEEDED = ("obs", "state", "actions", "final_obs", "final_state", "episode_return", "terminated")
_AGENTS_AT = {"obs": 1, "actions": 1, "alive": 1, "action_mask": 1, "final_obs": 0}
"""Where the axis of the agents is."""
_OF_ONE = (
    ", an entry for every agent of the team; where one agent was shown, record what the others saw "
    "and did beside it"
)
_ENDS = {"facts": "step_facts", "final_alive": "alive"}
"""What may be left out, and whose last row stands for it."""
_KINDS: dict[type[np.generic], str] = {np.float32: "fiu", np.int64: "iu", np.bool_: "b"}
"""Kinds of NumPy types that may stand for each of the format's; for uint8 none other may."""
_MAX_RETURN = float(np.finfo(np.float32).max)

_Type = tuple[tuple[int, ...], type[np.generic]]
"""Shape and type of an array."""


def episode_path(folder: Path, number: int) -> Path:
    """Return the path of an episode of a dataset."""
    return folder / "episodes" / f"{number:06d}.npz"


def episode_numbers(folder: Path, *, skip_damaged: bool = False) -> list[int]:
    """Return the numbers of a dataset's episodes, in order."""
    return numbers_in(folder / "episodes", ".npz", skip_damaged=skip_damaged)


def checked_episode(record: EpisodeRecord, spec: EnvSpec, where: str) -> EpisodeRecord:
    """Return the episode in the format's types; `DatasetError` names the array at fault."""
    given = _arrays(record)
    wanted = _checked_types(given, spec, where)
    arrays: dict[str, Array] = {}
    for name, (shape, dtype) in wanted.items():
        if name in given:
            arrays[name] = _converted(given[name], dtype, f"{where}: {name}")
        else:
            arrays[name] = np.zeros(shape, dtype) if 0 in shape else arrays[_ENDS[name]][-1]
    if spec.action_kind == "discrete":
        low, high = int(arrays["actions"].min()), int(arrays["actions"].max())
        if low < 0 or high >= spec.action_size:
            raise DatasetError(
                f"{where}: actions are from {low} to {high}, expected 0 to {spec.action_size - 1}"
            )
    value = float(record.episode_return)
    if not abs(value) <= _MAX_RETURN:
        raise DatasetError(f"{where}: return is {value}, expected a finite number (32 bits)")
    return EpisodeRecord(
        **arrays,
        episode_return=value,
        terminated=bool(record.terminated),
        demonstration=bool(record.demonstration),
    )


def write_episode(folder: Path, number: int, record: EpisodeRecord) -> None:
    """Write a checked episode into a dataset atomically."""
    if not 0 <= number <= MAX_NUMBER:
        raise DatasetError(f"{folder}: episode {number} cannot be: numbers begin at 0")
    path = episode_path(folder, number)
    make_folder(path.parent)
    values = {saved: getattr(record, name) for name, saved in _SAVED_AS.items()}
    values["demonstration"] = True if record.demonstration else None
    arrays = {saved: np.asarray(value) for saved, value in values.items() if value is not None}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    atomic_write(path, buffer.getvalue())


def read_episode(
    folder: Path, number: int, spec: EnvSpec, *, max_bytes: int | None = None
) -> EpisodeRecord:
    """Return a checked episode of a dataset, or raise `DatasetError`.

    Of the file's arrays, types and shapes are tested before any is read, and that all of them fit
    into `max_bytes` of memory.
    """
    path = episode_path(folder, number)
    if not path.is_file():
        raise DatasetError(f"{path} is missing: the dataset has no episode {number}")
    with closing(ArrayArchive(path, _SAVED_AS.values())) as file:
        headers = {
            n: file.headers[saved] for n, saved in _SAVED_AS.items() if saved in file.headers
        }
        if missing := [_SAVED_AS[name] for name in _NEEDED if name not in headers]:
            raise DatasetError(
                f"{path} has no {', '.join(missing)}; is it an episode of a preference dataset?"
            )
        scalars = [name for name in _SCALARS if name in headers]
        for name in scalars:
            _check_scalar(headers[name], f"{path}: {_SAVED_AS[name]}")
        arrays = {name: header for name, header in headers.items() if name not in _SCALARS}
        wanted = _checked_types(arrays, spec, str(path))
        needed = sum(header.num_bytes for header in headers.values())
        needed += sum(math.prod(shape) * np.dtype(kind).itemsize for shape, kind in wanted.values())
        if max_bytes is not None and needed > max_bytes:
            raise DatasetError(
                f"{path} needs {needed / 1e6:,.0f} MB of memory, expected at most "
                f"{max_bytes / 1e6:,.0f} MB, which are free here; {REMEDY}"
            )
        values: dict[str, Any] = {name: file.read(_SAVED_AS[name]) for name in headers}
    values |= {name: values[name].item() for name in scalars}
    return checked_episode(EpisodeRecord(**values), spec, str(path))


def read_return(folder: Path, number: int) -> float:
    """Return an episode's return without reading the rest; NaN where there is no such episode."""
    path = episode_path(folder, number)
    if not path.exists():
        return float("nan")
    with closing(ArrayArchive(path, ["return"])) as file:
        if "return" not in file.headers:
            raise DatasetError(f"{path} has no return; is it an episode of a preference dataset?")
        _check_scalar(file.headers["return"], f"{path}: return")
        return float(file.read("return").item())


def _arrays(record: EpisodeRecord) -> dict[str, Array]:
    """Return the arrays that a record has, by name."""
    values = {f.name: getattr(record, f.name) for f in fields(record) if f.name not in _SCALARS}
    return {name: np.asarray(value) for name, value in values.items() if value is not None}


def _expected(spec: EnvSpec, length: int) -> dict[str, _Type]:
    """Return shape and type of each array of an episode of so many steps."""
    team = (length, spec.num_agents)
    discrete = spec.action_kind == "discrete"
    seen: type[np.generic] = np.uint8 if spec.obs_image else np.float32
    whole: type[np.generic] = np.uint8 if spec.state_images else np.float32
    types: dict[str, _Type] = {
        "obs": ((*team, spec.obs_size), seen),
        "state": ((length, spec.state_size), whole),
        "actions": (team, np.int64) if discrete else ((*team, spec.action_size), np.float32),
        "final_obs": ((spec.num_agents, spec.obs_size), seen),
        "final_state": ((spec.state_size,), whole),
        "step_facts": ((length, len(spec.facts)), np.float32),
        "facts": ((len(spec.facts),), np.float32),
    }
    if spec.agents_die:
        types |= {"alive": (team, np.bool_), "final_alive": ((spec.num_agents,), np.bool_)}
    if spec.masks_actions:
        types["action_mask"] = ((*team, spec.action_size), np.bool_)
    return types


def _checked_types(
    given: Mapping[str, Array | ArrayHeader], spec: EnvSpec, where: str
) -> dict[str, _Type]:
    """Return what the arrays of an episode must be, or raise `DatasetError` where they are not."""
    shape = given["state"].shape
    steps = shape[0] if shape else 0
    if not 1 <= steps <= spec.max_steps:
        raise DatasetError(
            f"{where}: state has {steps} steps, expected 1 to {spec.max_steps} (spec.max_steps)"
        )
    wanted = _expected(spec, steps)
    for name, (shape, dtype) in wanted.items():
        if name not in given:
            if 0 in shape or name in _ENDS:
                continue
            raise DatasetError(f"{where}: {name} is missing; {spec.name} needs shape {shape}")
        array = given[name]
        if array.shape != shape:
            raise DatasetError(
                f"{where}: {name} has shape {array.shape}, expected {shape}"
                + (_OF_ONE if _is_of_one(name, array.shape, shape) else "")
            )
        if array.dtype != dtype and array.dtype.kind not in _KINDS.get(dtype, ""):
            raise DatasetError(
                f"{where}: {name} has dtype {array.dtype}, expected {np.dtype(dtype)}"
            )
    for name in given:
        if name not in wanted:
            raise DatasetError(
                f"{where}: has {name}, but dataset.toml says that {spec.name} has none"
            )
    return wanted


def _is_of_one(name: str, got: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    """Return whether an array of a team's agents is that of a single one."""
    if name not in _AGENTS_AT:
        return False
    place = _AGENTS_AT[name]
    alone = (*expected[:place], *expected[place + 1 :])
    return got in (alone, (*expected[:place], 1, *expected[place + 1 :]))


def _check_scalar(value: Array | ArrayHeader, where: str) -> None:
    """Raise `DatasetError` unless a value is one number or truth value."""
    if value.shape not in ((), (1,)) or value.dtype.kind not in "biuf":
        raise DatasetError(
            f"{where} has shape {value.shape} and dtype {value.dtype}, expected one number"
        )


def _converted(array: Array, dtype: type[np.generic], where: str) -> Array:
    """Return an array in the wanted type, or raise `DatasetError`; integers pass as floats."""
    with np.errstate(over="ignore"):  # what overflows is infinite, and refused
        made = np.ascontiguousarray(array, dtype)
    if made.dtype.kind == "f" and not np.isfinite(made).all():
        raise DatasetError(f"{where} holds NaN or infinity")
    return made
