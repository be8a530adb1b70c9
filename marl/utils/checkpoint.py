"""Checkpoints: everything a run needs to continue, in one file that is whole or not there.

A file is one header line, which carries the length and SHA-256 of what follows, and a PyTorch
archive. It is written beside its final name, synced and renamed, so a run killed at any moment
leaves the previous checkpoint untouched. It is read with ``weights_only=True``, so a file from a
stranger cannot run code.
"""

import hashlib
import io
import math
import shutil
import warnings
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from marl.errors import UserError
from marl.utils.files import atomic_path

# A run's state as values that PyTorch reads back without unpickling anything else.
#
# NumPy arrays travel as byte tensors beside a note of where they were, their dtype and their
# shape. Everything else must be of exactly the types listed here, so what is loaded equals what
# was saved.


_PLAIN = (type(None), bool, int, float, str)
_KEYS = (bool, int, float, str)
_Path = tuple[Any, ...]
_Notes = dict[_Path, tuple[str, tuple[int, ...], bool]]


class UnsupportedStateError(TypeError):
    """A state holds something that cannot be saved exactly."""


def encode(state: dict[str, Any]) -> dict[str, Any]:
    """Return `state` for `torch.save`, sharing memory with it wherever possible."""
    notes: _Notes = {}
    return {"tree": _encode(state, (), notes), "arrays": notes}


def decode(encoded: dict[str, Any]) -> dict[str, Any]:
    """Return the state that `encode` was given; the arrays are new and writable."""
    tree: dict[str, Any] = _decode(encoded["tree"], (), encoded["arrays"])
    return tree


def _encode(value: Any, path: _Path, notes: _Notes) -> Any:
    if type(value) in _PLAIN:
        return value
    if isinstance(value, torch.Tensor):
        return _whole_storage(value.detach().cpu())
    if isinstance(value, np.ndarray | np.generic):
        return _encode_array(value, path, notes)
    if isinstance(value, dict):
        return {_key(k, path): _encode(item, (*path, k), notes) for k, item in value.items()}
    if type(value) in (list, tuple, torch.Size):
        items = [_encode(item, (*path, index), notes) for index, item in enumerate(value)]
        return items if type(value) is list else tuple(items)
    raise UnsupportedStateError(
        f"{_name(path)} is a {type(value).__name__}; expected a tensor, an array, a number, a "
        "string, None, or a dict, list or tuple of these"
    )


def _encode_array(
    value: np.ndarray[Any, Any] | np.generic, path: _Path, notes: _Notes
) -> torch.Tensor:
    """Return the array's bytes as a tensor and note how to undo that."""
    if value.dtype.hasobject or value.dtype.fields is not None:
        raise UnsupportedStateError(f"{_name(path)} is an array of {value.dtype}; use plain dtypes")
    notes[path] = (value.dtype.str, value.shape, isinstance(value, np.generic))
    array = np.ascontiguousarray(value)
    if not array.flags.writeable:
        array = array.copy()  # PyTorch warns about memory it may not write
    return torch.from_numpy(array.reshape(-1).view(np.uint8))


def _decode(value: Any, path: _Path, notes: _Notes) -> Any:
    if path in notes:
        dtype, shape, is_scalar = notes[path]
        if math.prod(shape) == 0:
            return np.empty(shape, dtype)
        array = value.numpy().view(dtype).reshape(shape)
        return array[()] if is_scalar else array
    if isinstance(value, dict):
        return {key: _decode(item, (*path, key), notes) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [_decode(item, (*path, index), notes) for index, item in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    return value


def _whole_storage(tensor: torch.Tensor) -> torch.Tensor:
    """Return `tensor`, copied if it is a window: PyTorch would save all memory behind it."""
    return tensor if tensor.nbytes == tensor.untyped_storage().nbytes() else tensor.clone()


def _key(key: Any, path: _Path) -> Any:
    if type(key) not in _KEYS:
        raise UnsupportedStateError(
            f"{_name(path)} has the key {key!r} of type {type(key).__name__}; use strings or ints"
        )
    return key


def _name(path: _Path) -> str:
    """Return the path as the user would write it, without the wrapper around the state."""
    return "state" + "".join(f"[{key!r}]" for key in path[1:])


FORMAT_VERSION = 3
"""Format 3 adds the environment's constants to a run's, and who was alive at an episode's end."""
READABLE = (2, 3)
_MAGIC = b"prefmarl-checkpoint"
_HEADER = _MAGIC.decode() + " {version:4d} {size:16d} {digest:64s}\n"
_HEADER_SIZE = len(_HEADER.format(version=0, size=0, digest=""))


class CheckpointError(UserError):
    """A checkpoint could not be written, or none could be read."""


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], keep: int = 3) -> Path:
    """Return the path of the new checkpoint; of those before it, the `keep - 1` newest stay.

    `state` nests dicts, lists and tuples around tensors, NumPy arrays, numbers, strings and
    None. Tensors come back on the CPU.
    """
    if keep < 1:
        raise ValueError(f"keep is {keep}; at least 1 checkpoint must be kept")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step_{step:012d}.ckpt"
    try:
        encoded = encode({"step": step, "state": state})
        with atomic_path(path) as temporary:
            _write(temporary, encoded)
    except UnsupportedStateError as error:
        raise CheckpointError(f"cannot save {path}: {error}") from error
    except OSError as error:
        raise CheckpointError(
            f"cannot save {path}: {error}; {shutil.disk_usage(folder).free / 1e6:,.1f} MB are "
            "free there; free some space and resume from the previous checkpoint"
        ) from error
    older = [other for other in list_checkpoints(folder) if other.name < path.name]
    left_by_kills = folder.glob("step_*.tmp")
    for superfluous in [*older[keep - 1 :], *left_by_kills]:
        superfluous.unlink()
    return path


def load_checkpoint(folder: Path) -> tuple[int, dict[str, Any]]:
    """Return the step and state of the newest good checkpoint, warning about damaged ones."""
    paths = list_checkpoints(folder)
    if not paths:
        raise CheckpointError(f"{folder} holds no checkpoint (step_*.ckpt); is it a run's folder?")
    for path in paths:
        try:
            return read_checkpoint(path)
        except CheckpointError as error:
            warnings.warn(f"skipping a damaged checkpoint: {error}", stacklevel=2)
    raise CheckpointError(
        f"none of the {len(paths)} checkpoints in {folder} is good; start the run again"
    )


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the folder's checkpoints, newest step first, good or damaged."""
    return sorted(folder.glob("step_*.ckpt"), reverse=True)


def read_checkpoint(path: Path) -> tuple[int, dict[str, Any]]:
    """Return the step and state of one checkpoint file; its checksum is tested before its content.

    The bytes tested are the bytes decoded: the file is read once, into memory.
    """
    try:
        with path.open("rb") as file:
            header, payload = file.read(_HEADER_SIZE), file.read()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    _check(path, header, payload)
    try:
        encoded = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
        content = decode(encoded)
        return content["step"], content["state"]
    except Exception as error:  # whatever a hostile or foreign archive provokes, it is refused
        raise CheckpointError(
            f"{path} has a valid checksum and content this program does not write "
            f"({type(error).__name__}); do not trust where it came from"
        ) from error


def _check(path: Path, header: bytes, payload: bytes) -> None:
    """Raise unless the header is ours and describes exactly this payload."""
    fields = header.split()
    if len(header) < _HEADER_SIZE or len(fields) != 4 or fields[0] != _MAGIC:
        raise CheckpointError(f"{path} does not begin with a checkpoint's header")
    version, size, digest = (field.decode("ascii", "replace") for field in fields[1:])
    if version not in map(str, READABLE):
        raise CheckpointError(
            f"{path} has format {version}, this program reads formats "
            f"{' and '.join(map(str, READABLE))}; use the release that wrote it"
        )
    if size != str(len(payload)):
        raise CheckpointError(f"{path} is cut short: {len(payload)} bytes of {size}")
    if digest != hashlib.sha256(payload).hexdigest():
        raise CheckpointError(f"{path} was changed after it was written: its checksum differs")


def _write(path: Path, encoded: dict[str, Any]) -> None:
    """Write header and archive to `path` in one pass."""
    with path.open("wb") as file:
        file.seek(_HEADER_SIZE)
        payload = _HashingWriter(file)
        torch.save(encoded, payload)  # type: ignore[arg-type]  # it only writes
        if payload.error is not None:
            raise payload.error
        file.seek(0)
        digest = payload.sha256.hexdigest()
        header = _HEADER.format(version=FORMAT_VERSION, size=payload.size, digest=digest)
        file.write(header.encode())


class _HashingWriter:
    """A write-only file that hashes what passes through, so that nothing is read back.

    The first failure is kept instead of raised: PyTorch's archive writer replaces an error from
    `write` with one about its own position, and the reason (a full disk) would be lost.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.sha256 = hashlib.sha256()
        self.size = 0
        self.error: OSError | None = None
        self._file = file

    def write(self, data: bytes | memoryview) -> int:
        """Return the number of bytes taken."""
        length = memoryview(data).nbytes
        if self.error is None:
            try:
                self._file.write(data)
            except OSError as error:
                self.error = error
            self.sha256.update(data)
            self.size += length
        return length

    def flush(self) -> None:
        """Do nothing: `_write` flushes once, at the end."""
