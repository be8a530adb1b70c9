"""oxwhirl/smacv2 and the game behind it: what they need, what they raise and what they draw.

The calls used here were read in `smacv2/env/starcraft2/` (`starcraft2.py`, `wrapper.py`,
`distributions.py`) at commit 9dabb98 of github.com/oxwhirl/smacv2, and in PySC2 4.0.0.
"""

import importlib
import os
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np

from envs.base import EnvError

INSTALL = (
    "SMACv2 needs three things: the package, "
    "pip install git+https://github.com/oxwhirl/smacv2.git; StarCraft II (for Linux from "
    "github.com/Blizzard/s2client-proto#downloads) in ~/StarCraftII, or anywhere if the "
    "environment variable SC2PATH names the folder; and the maps, the folder SMAC_Maps of the "
    "package's smacv2/env/starcraft2/maps, copied to $SC2PATH/Maps/SMAC_Maps"
)

_OURS = ("seed", "continuing_episode", "map_name", "capability_config")


class GameDeathError(Exception):
    """StarCraft II stopped answering."""


def made(options: dict[str, Any], seed: int | None) -> Any:
    """Return a `StarCraftCapabilityEnvWrapper` whose game is launched by its first reset.

    `seed` is that of the game itself, which lasts for many episodes. ``continuing_episode`` only
    makes upstream say which battles its time limit ended.
    """
    wrapper = _wrapper()
    try:
        # Upstream writes into the capabilities it is given.
        return wrapper(**deepcopy(options), seed=seed, continuing_episode=True)
    except TypeError as error:
        raise EnvError(
            f"smacv2's StarCraft2Env does not take {options}: {error}; correct the options"
        ) from error


def check_options(options: dict[str, Any], capabilities: dict[str, Any]) -> None:
    """Raise on settings that are not the user's, or that tie an episode to the ones before."""
    for name in _OURS:
        if name in options:
            raise EnvError(f"smacv2: {name} is set by this package; leave the option out")
    for name, capability in capabilities.items():
        if isinstance(capability, dict) and capability.get("test_mode"):
            raise EnvError(
                f"smacv2: the capability {name} with test_mode takes its items in order, so an "
                "episode would not depend on its seed alone; set test_mode to False"
            )


def check_game() -> None:
    """Raise unless the game and the maps lie where PySC2 looks for them."""
    told = os.environ.get("SC2PATH")
    if told is None and sys.platform != "linux":
        return  # PySC2 asks the game's launcher where it is.
    folder = Path(told or "~/StarCraftII").expanduser()
    for path in (folder, folder / "Versions", folder / "Maps" / "SMAC_Maps"):
        if not path.is_dir():
            raise EnvError(f"smacv2: there is no folder {path}. {INSTALL}")


def game_errors() -> tuple[type[Exception], ...]:
    """Return what is raised when the game died or could not be reached."""
    flags = importlib.import_module("absl.flags").FLAGS
    if not flags.is_parsed():
        flags.mark_as_parsed()  # PySC2 reads flags that only a program of its own would parse.
    protocol, controller, process = (
        importlib.import_module(f"pysc2.lib.{name}")
        for name in ("protocol", "remote_controller", "sc_process")
    )
    return (
        GameDeathError,
        protocol.ConnectionError,
        protocol.ProtocolError,
        controller.ConnectError,
        controller.RequestError,
        process.SC2LaunchError,
    )


class EpisodeDraws:
    """The random numbers of one episode, for code that seeds none of its generators.

    Unit types and start positions are drawn by distributions with generators of their own and by
    ``random``; who notices an enemy first, by ``random`` and ``numpy.random``.
    """

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._python = random.Random(seed).getstate()
        self._numpy = np.random.RandomState(seed).get_state()

    def seeded(self, distributions: dict[str, Any]) -> dict[str, Any]:
        """Return copies of distributions that draw from this episode's generator."""
        copies = deepcopy(distributions)
        for distribution in copies.values():
            self._hand_over(distribution)
        return copies

    @contextmanager
    def used(self) -> Iterator[None]:
        """Let this episode's numbers be the global ones meanwhile: upstream draws from those."""
        python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - upstream's own
        random.setstate(self._python)
        np.random.set_state(self._numpy)  # noqa: NPY002 - upstream's own
        try:
            yield
        finally:
            self._python, self._numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - upstream's own
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002 - upstream's own

    def _hand_over(self, distribution: Any) -> None:
        """Replace the generators of a distribution and of those inside it."""
        for name, value in list(vars(distribution).items()):
            if isinstance(value, np.random.Generator):
                setattr(distribution, name, self._rng)
            elif hasattr(value, "generate"):
                self._hand_over(value)


def _wrapper() -> Any:
    """Return upstream's class, or raise with what to install."""
    try:
        return importlib.import_module("smacv2.env").StarCraftCapabilityEnvWrapper
    except ModuleNotFoundError as error:
        raise EnvError(f"smacv2 cannot be imported ({error}). {INSTALL}") from error
