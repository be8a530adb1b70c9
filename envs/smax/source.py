"""Where the battles come from: JaxMARL's module of SMAX and the names of its scenarios."""

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from envs.base import EnvError

SMAX_NAMES: tuple[str, ...] = (
    "3m",
    "2s3z",
    "25m",
    "3s5z",
    "8m",
    "5m_vs_6m",
    "10m_vs_11m",
    "27m_vs_30m",
    "3s5z_vs_3s6z",
    "3s_vs_5z",
    "6h_vs_8z",
    "smacv2_5_units",
    "smacv2_10_units",
    "smacv2_20_units",
)
"""JaxMARL's scenarios; those named after SMACv2 draw unit types and positions anew each time."""


def import_smax() -> ModuleType:
    """Return the module `jaxmarl.environments.smax`."""
    with _streams_kept():
        from jaxmarl.environments import smax
    module: ModuleType = smax
    return module


@contextmanager
def _streams_kept() -> Iterator[None]:
    """Keep a notice that JaxMARL prints from the screen, and the process's streams as they were.

    Its import ends with `sys.stdout` and `sys.stderr` pointing at the original streams, which
    would undo a notebook's or a test runner's own, and prints to them.
    """
    stdout, stderr, original = sys.stdout, sys.stderr, sys.__stdout__
    # Typeshed calls the original streams constant; JaxMARL reads them by that name.
    sys.stdout = sys.__stdout__ = io.StringIO()  # type: ignore[misc, assignment]  # constant to typeshed
    try:
        yield
    finally:
        sys.stdout, sys.stderr = stdout, stderr
        sys.__stdout__ = original  # type: ignore[misc]  # as above


def find_scenario(smax: ModuleType, name: str) -> Any:
    """Return JaxMARL's scenario of that name, one that the user registered included."""
    try:
        return smax.map_name_to_scenario(name)
    except KeyError:
        raise EnvError(
            f"SMAX has no scenario {name!r}; choose one of {', '.join(SMAX_NAMES)}, or register "
            "yours with jaxmarl.environments.smax.register_scenario"
        ) from None
