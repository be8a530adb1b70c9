"""One outcome in three units, as ``reward_outcome`` of `particles`."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

Facts = Mapping[str, npt.NDArray[np.float64]]

UNITS = {"plain": 1.0, "tiny": 2.0**-26, "huge": 2.0**26}


def plain(facts: Facts) -> npt.NDArray[np.float64]:
    return -facts["mean_distance"].astype(np.float32).astype(np.float64)


def tiny(facts: Facts) -> npt.NDArray[np.float64]:
    return plain(facts) * UNITS["tiny"]


def huge(facts: Facts) -> npt.NDArray[np.float64]:
    return plain(facts) * UNITS["huge"]
