"""Tiny tasks with a known optimum and a known random score, to test learning: `probe/...`.

Each function makes one environment; its docstring states the optimal and the random return of
an episode. Random means uniform over the legal actions.
"""

from envs.families import Maker
from envs.probes.continuous_match import continuous_match
from envs.probes.cues import coordination, dying, local_credit
from envs.probes.masked import masked
from envs.probes.recall import recall
from envs.probes.time_limit import time_limit

__all__ = [
    "continuous_match",
    "coordination",
    "dying",
    "local_credit",
    "masked",
    "recall",
    "time_limit",
]


def members() -> list[str]:
    """Return the names of the probes."""
    return list(__all__)


def maker(member: str) -> Maker | None:
    """Return the maker of a probe."""
    return Maker(globals()[member]) if member in __all__ else None
