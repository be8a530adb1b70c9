"""Everything that changes in a VMAS environment, as nested dicts of arrays and numbers.

VMAS keeps its state in attributes of the environment, its scenario, its world, and all that they
hold; each scenario adds attributes of its own, some of which name another object, such as an
agent's goal. They are therefore found by walking the objects, breadth first and the world first,
so that what the world consists of is known by its place there and not by who refers to it.
"""

import random
from collections import deque
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import Tensor

_OBJECT, _TENSOR, _TEXT, _CONSTANT = "object ", "tensor ", "text ", "constant"


def saved_objects(env: Any) -> dict[str, Any]:
    """Return copies of the tensors and numbers of a VMAS environment, by path and attribute.

    An object or a tensor reached twice is saved where it is met first and referred to by that
    path elsewhere, since changing it in one place changes it in the other.
    """
    objects = _walk(env)
    names = {id(found): path for path, found in objects.items()}
    tensors: dict[int, str] = {}
    return {
        path: {
            key: _saved(child, f"{path}/{key}", names, tensors)
            for key, child in _parts(found).items()
        }
        for path, found in objects.items()
    }


def load_objects(env: Any, saved: dict[str, Any]) -> None:
    """Put `saved_objects()` of an environment made with the same options into `env`."""
    objects = _walk(env)
    for path, parts in saved.items():
        # Lists and dicts that play adds, e.g. of the forces on each entity.
        objects.setdefault(path, {} if "key 0" in parts else [])
    tensors: dict[str, Tensor] = {}
    for path, parts in saved.items():
        loaded = {
            key: _loaded(value, f"{path}/{key}", objects, tensors)
            for key, value in parts.items()
            if not (isinstance(value, str) and value == _CONSTANT)
        }
        _put(objects[path], loaded, len(parts))


def _walk(env: Any) -> dict[str, Any]:
    """Return all objects, lists and dicts that `env` consists of, by path."""
    scenario_home = type(env.scenario).__module__
    objects: dict[str, Any] = {"world": env.world, "scenario": env.scenario, "env": env}
    seen = {id(found) for found in objects.values()}
    queue = deque(objects.items())
    while queue:
        path, parent = queue.popleft()
        for key, child in _parts(parent).items():
            if id(child) not in seen and _is_walked(child, scenario_home):
                seen.add(id(child))
                objects[f"{path}/{key}"] = child
                queue.append((f"{path}/{key}", child))
    return objects


def _is_walked(child: Any, scenario_home: str) -> bool:
    """Return whether a part may change and hold others: containers, and what VMAS defines."""
    if isinstance(child, dict | list | tuple):
        return True
    home = type(child).__module__
    # VMAS loads a scenario's file as a module apart; one of them draws torch's distributions.
    at_home = home == scenario_home or home.startswith(("vmas.", "torch.distributions."))
    return at_home and hasattr(child, "__dict__") and not isinstance(child, Enum)


def _parts(parent: Any) -> dict[str, Any]:
    """Return the parts of an object by name, of a sequence by index, of a dict by position."""
    if isinstance(parent, dict):
        keys = {f"key {index}": key for index, key in enumerate(parent)}
        return keys | {f"value {index}": value for index, value in enumerate(parent.values())}
    if isinstance(parent, list | tuple):
        return {str(index): child for index, child in enumerate(parent)}
    return vars(parent)


def _saved(child: Any, path: str, names: dict[int, str], tensors: dict[int, str]) -> Any:
    """Return what is saved of one part: itself, its path, or that it never changes."""
    if id(child) in names:
        return _OBJECT + names[id(child)]
    if isinstance(child, Tensor):
        first = tensors.setdefault(id(child), path)
        return child.detach().cpu().numpy().copy() if first == path else _TENSOR + first
    if isinstance(child, str):
        return _TEXT + child
    return child if isinstance(child, bool | int | float | None) else _CONSTANT


def _loaded(value: Any, path: str, objects: dict[str, Any], tensors: dict[str, Tensor]) -> Any:
    """Return the part that was saved as `value`."""
    if isinstance(value, np.ndarray):
        tensors[path] = torch.from_numpy(value.copy())
        return tensors[path]
    if not isinstance(value, str):
        return value
    if value.startswith(_OBJECT):
        return objects[value.removeprefix(_OBJECT)]
    return (
        tensors[value.removeprefix(_TENSOR)] if value.startswith(_TENSOR) else value[len(_TEXT) :]
    )


def _put(parent: Any, parts: dict[str, Any], size: int) -> None:
    """Write the parts into an object, a list or a dict that had `size` parts, constants too."""
    if isinstance(parent, dict):
        # A key that is saved as constant, or consists of others, is the key that is there.
        there = dict(enumerate(parent))
        fresh = {}
        for index in range(size // 2):
            key = parts.get(f"key {index}", there.get(index))
            key = there.get(index) if isinstance(key, dict | list | tuple) else key
            fresh[key] = parts.get(f"value {index}", parent.get(key))
        parent.clear()
        parent.update(fresh)
    elif isinstance(parent, list):
        parent[size:] = []
        for name, part in parts.items():
            parent[int(name) : int(name) + 1] = [part]
    elif not isinstance(parent, tuple):
        vars(parent).update(parts)


def saved_generators(states: list[Any]) -> dict[str, Any]:
    """Return the states of PyTorch's, NumPy's and Python's generators as arrays and numbers."""
    torch_state, numpy_state, python_state = states
    return {
        "torch": torch_state.numpy().copy(),
        "numpy": {
            "keys": numpy_state[1].copy(),
            "position": int(numpy_state[2]),
            "has_gauss": int(numpy_state[3]),
            "gauss": float(numpy_state[4]),
        },
        "python": {"words": np.array(python_state[1], np.int64), "gauss": python_state[2]},
    }


def loaded_generators(saved: dict[str, Any]) -> list[Any]:
    """Return the states that `saved_generators` was given."""
    numpy, python = saved["numpy"], saved["python"]
    version = random.getstate()[0]
    return [
        torch.from_numpy(saved["torch"].copy()),
        ("MT19937", numpy["keys"].copy(), numpy["position"], numpy["has_gauss"], numpy["gauss"]),
        (version, tuple(python["words"].tolist()), python["gauss"]),
    ]
