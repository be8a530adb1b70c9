"""One seed, many named generators.

Generators are independent by name: adding one, or drawing more from one, changes no other. A
generator's seed is a SHA-256 of the run's seed and the name, the same on every machine and
Python version.
"""

import hashlib
from typing import Any

import numpy as np
import torch

from marl.utils.ranks import Ranks


def process_stream(ranks: Ranks) -> str:
    """Return the stream of a process; process 0 has that of a run in one process."""
    return f"/process {ranks.rank}" if ranks.rank else ""


class Seeds:
    """The generators of one run. Asking twice for a name gives the same generator."""

    def __init__(self, seed: int, stream: str = "") -> None:
        """`stream` tells processes of one run apart: their generators are independent."""
        self.seed = seed
        self.stream = stream
        self._torch: dict[str, torch.Generator] = {}
        self._numpy: dict[str, np.random.Generator] = {}

    def torch(self, name: str, device: str | torch.device = "cpu") -> torch.Generator:
        """Return the PyTorch generator called `name`, living on `device`."""
        wanted = torch.device(device)
        if name not in self._torch:
            self._torch[name] = torch.Generator(wanted).manual_seed(self._derive("torch", name))
        generator = self._torch[name]
        if generator.device.type != wanted.type:
            raise ValueError(
                f"generator {name!r} lives on {generator.device.type} and was asked for on "
                f"{wanted.type}; use one device per name, and resume a run on the device it used"
            )
        return generator

    def numpy(self, name: str) -> np.random.Generator:
        """Return the NumPy generator called `name`."""
        if name not in self._numpy:
            self._numpy[name] = np.random.default_rng(self._derive("numpy", name))
        return self._numpy[name]

    def integer(self, name: str) -> int:
        """Return a fixed number in [0, 2**63) for what takes a plain seed, e.g. `VecEnv.reset`."""
        return self._derive("integer", name)

    def state_dict(self) -> dict[str, Any]:
        """Return the seed and the state of every generator handed out so far."""
        return {
            "seed": self.seed,
            "stream": self.stream,
            "torch": {
                name: {"device": generator.device.type, "state": generator.get_state()}
                for name, generator in self._torch.items()
            },
            "numpy": {
                name: generator.bit_generator.state for name, generator in self._numpy.items()
            },
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`; generators already handed out are changed in place.

        One handed out here but unknown to `state` goes back to its first draw, which is where the
        saved run would have found it.
        """
        self.seed, self.stream = state["seed"], state["stream"]
        for name in self._torch.keys() | state["torch"].keys():
            saved = state["torch"].get(name)
            generator = self.torch(name, saved["device"] if saved else self._torch[name].device)
            generator.manual_seed(self._derive("torch", name))
            if saved:
                generator.set_state(saved["state"])
        for name in self._numpy.keys() | state["numpy"].keys():
            fresh = np.random.default_rng(self._derive("numpy", name)).bit_generator.state
            self.numpy(name).bit_generator.state = state["numpy"].get(name, fresh)

    def restart(self, stream: str) -> None:
        """Begin all generators anew, as those of another stream; they are changed in place."""
        self.stream = stream
        for name in self._torch:
            self._torch[name].manual_seed(self._derive("torch", name))
        for name in self._numpy:
            fresh = np.random.default_rng(self._derive("numpy", name))
            self._numpy[name].bit_generator.state = fresh.bit_generator.state

    def _derive(self, kind: str, name: str) -> int:
        """Return the 63-bit seed of one name; `kind` keeps equal names of two libraries apart."""
        digest = hashlib.sha256(f"{self.seed}{self.stream}/{kind}/{name}".encode()).digest()
        return int.from_bytes(digest[:8], "big") >> 1
