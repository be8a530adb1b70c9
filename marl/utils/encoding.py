"""States as values that PyTorch reads back without unpickling anything else.

NumPy arrays travel as byte tensors beside a note of where they were, their dtype and their shape.
Everything else must be of exactly the types listed here, so what is loaded equals what was saved.
"""

import math
from typing import Any

import numpy as np
import torch

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
