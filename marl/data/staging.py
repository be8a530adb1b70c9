"""The buffers of a rollout: where environments write them, and where networks read them.

Environments write NumPy arrays of host memory. With a GPU every buffer has its twin there: a step
sends what the agents observe and fetches their actions, one transfer each, through page-locked
memory; the rest of a rollout is sent at once at its end. What an environment gives as an array of a
device (`envs.devices`) is written to the twin directly. On the CPU a buffer is its own twin.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from envs.devices import is_elsewhere


def as_tensor(array: Any) -> Tensor:
    """Return an array of any device and library as a tensor of the same memory."""
    return torch.from_numpy(array) if isinstance(array, np.ndarray) else from_dlpack(array)


def is_host(device: torch.device) -> bool:
    """Return whether a device's memory is the one that NumPy sees."""
    return device.type == "cpu"


class Staging:
    """Buffers in host memory and on the networks' device.

    `local` names those that are written on the device: by networks, or by an environment there.
    """

    def __init__(
        self, buffers: dict[str, Tensor], device: torch.device, *, local: Iterable[str]
    ) -> None:
        self._is_host = is_host(device)
        self._is_cuda = device.type == "cuda"
        self._local = frozenset(local)
        self.device = buffers if self._is_host else _each(buffers, partial(_twin, device=device))
        """What networks read."""
        written = {name: buffers[name] for name in buffers.keys() - self._local}
        self._host = _each(written, self._locked)
        """What environments write."""
        self._arrays = {name: tensor.numpy() for name, tensor in self._host.items()}
        self._fetched: Tensor | None = None
        self._sent: torch.cuda.Event | None = None

    def begin(self) -> None:
        """Wait until what was sent at the end of the last rollout has left host memory."""
        if self._sent is not None:
            self._sent.synchronize()

    def write(self, name: str, t: int, array: Any) -> None:
        """Store a step's array, of host memory or of a device."""
        if name in self._local or is_elsewhere(array):
            self[name][t].copy_(as_tensor(array))
        else:
            self._arrays[name][t] = array

    def send(self, name: str, t: int) -> Tensor:
        """Return a step's row on the device."""
        row = self.device[name][t]
        if not self._is_host and name not in self._local:
            row.copy_(self._host[name][t], non_blocking=self._is_cuda)
        return row

    def fetch(self, tensor: Tensor) -> npt.NDArray[Any]:
        """Return a tensor of the device as an array, which whoever is given it may keep."""
        if self._is_host:
            return tensor.numpy()
        if self._fetched is None:
            self._fetched = self._locked(torch.empty_like(tensor, device="cpu"))
        return self._fetched.copy_(tensor).numpy().copy()

    def send_rest(self, sent: Iterable[str]) -> dict[str, Tensor]:
        """Return all buffers on the device, after sending those that no step has `sent`."""
        if not self._is_host:
            for name in self.device.keys() - self._local - set(sent):
                self.device[name].copy_(self._host[name], non_blocking=self._is_cuda)
            if self._is_cuda:
                self._sent = torch.cuda.Event()
                self._sent.record()
        return self.device

    def __contains__(self, name: str) -> bool:
        return name in self.device

    def __getitem__(self, name: str) -> Tensor:
        """Return a buffer where it is written first: in host memory or on the device."""
        return (self.device if name in self._local else self._host)[name]

    def _locked(self, tensor: Tensor) -> Tensor:
        """Return a tensor in page-locked memory, which a GPU reads without a copy of the driver."""
        return tensor.pin_memory() if self._is_cuda else tensor


def _twin(tensor: Tensor, device: torch.device) -> Tensor:
    """Return zeros on a device in the shape of a tensor."""
    return torch.zeros_like(tensor, device=device)


def _each(tensors: dict[str, Tensor], change: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """Return every tensor changed; names that share one share one again."""
    changed = {id(tensor): change(tensor) for tensor in tensors.values()}
    return {name: changed[id(tensor)] for name, tensor in tensors.items()}
