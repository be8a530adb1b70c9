"""PettingZoo AEC environments: agents that act in turn, and agents that act as if at once."""

from typing import Any

from pettingzoo.utils.conversions import parallel_to_aec

from tests.village import Village
from tests.workshop import Workshop


def in_turn() -> Any:
    """Return an AEC environment that does not promise to be parallelizable."""
    made = parallel_to_aec(Village())
    made.metadata = {"name": "village"}
    return made


def at_once() -> Any:
    """Return one in which nothing changes before the last agent has acted, and which says so."""
    return parallel_to_aec(Workshop())
