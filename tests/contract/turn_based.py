"""A PettingZoo environment whose agents act in turn."""

from typing import Any

from pettingzoo.utils.conversions import parallel_to_aec

from tests.village import Village


def env() -> Any:
    """Return an AEC environment."""
    return parallel_to_aec(Village())
