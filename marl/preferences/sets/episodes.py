"""One finished episode of a preference set: ``episodes/000003.npz``.

Axes: L steps, N agents; O, S, A features, F facts.
"""

import io
import zipfile
import zlib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from envs import EnvSpec
from marl.disk import write_whole
from marl.preferences.sets.manifest import SetError

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
    """Return where a set keeps an episode."""
    return folder / "episodes" / f"{number:06d}.npz"


def episode_numbers(folder: Path) -> list[int]:
    """Return the numbers of a set's episodes, in order."""
    names = (path.stem for path in folder.glob("episodes/*.npz"))
    return sorted(int(name) for name in names if name.isdecimal())


def checked_episode(record: EpisodeRecord, spec: EnvSpec, where: str) -> EpisodeRecord:
    """Return the episode in the format's types, or raise `SetError` naming the array at fault."""
    if not 1 <= record.length <= spec.max_steps:
        raise SetError(
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
            raise SetError(f"{where}: {name} is missing; {spec.name} needs shape {shape}")
        arrays[name] = _typed(np.asarray(given), shape, dtype, f"{where}: {name}")
    optional = [f.name for f in fields(record) if f.name not in (*wanted, *_SCALARS)]
    for name in optional:
        if getattr(record, name) is not None:
            raise SetError(f"{where}: has {name}, but set.toml says that {spec.name} has none")
    if spec.action_kind == "discrete":
        low, high = int(arrays["actions"].min()), int(arrays["actions"].max())
        if low < 0 or high >= spec.action_size:
            raise SetError(
                f"{where}: actions are from {low} to {high}, expected 0 to {spec.action_size - 1}"
            )
    value = float(record.episode_return)
    if not np.isfinite(value):
        raise SetError(f"{where}: return is {value}, expected a finite number")
    return EpisodeRecord(**arrays, episode_return=value, terminated=bool(record.terminated))


def write_episode(folder: Path, number: int, record: EpisodeRecord) -> None:
    """Write a checked episode into a set, whole or not at all."""
    path = episode_path(folder, number)
    path.parent.mkdir(parents=True, exist_ok=True)
    values = {f.name: getattr(record, f.name) for f in fields(record)}
    buffer = io.BytesIO()
    saved = {_SAVED_AS.get(k, k): np.asarray(v) for k, v in values.items() if v is not None}
    np.savez_compressed(buffer, allow_pickle=False, **saved)
    write_whole(path, buffer.getvalue())


def read_episode(folder: Path, number: int, spec: EnvSpec) -> EpisodeRecord:
    """Return a checked episode of a set, or raise `SetError` that says what is wrong with it."""
    path = episode_path(folder, number)
    if not path.is_file():
        raise SetError(f"{path} is missing: the set has no episode {number}")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        known = {_SAVED_AS.get(f.name, f.name): f.name for f in fields(EpisodeRecord)}
        values = {name: arrays[saved] for saved, name in known.items() if saved in arrays}
        values |= {name: values[name].item() for name in _SCALARS if name in values}
    except _DAMAGE as error:
        raise SetError(
            f"{path} is damaged ({type(error).__name__}: {error}); restore it, or delete it and "
            "its answers are left out"
        ) from error
    missing = [saved for saved, name in known.items() if name in _NEEDED and name not in values]
    if missing:
        raise SetError(f"{path} has no {', '.join(missing)}; is it an episode of a preference set?")
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
    """Return an array of the wanted kind, or raise `SetError`; integers may stand for floats."""
    if array.shape != shape:
        raise SetError(f"{where} has shape {array.shape}, expected {shape}")
    if array.dtype.kind not in _KINDS[dtype]:
        raise SetError(f"{where} has dtype {array.dtype}, expected {np.dtype(dtype)}")
    with np.errstate(over="ignore"):  # what overflows is infinite, and refused
        made = np.ascontiguousarray(array, dtype)
    if made.dtype.kind == "f" and not np.isfinite(made).all():
        raise SetError(f"{where} holds NaN or infinity")
    return made
