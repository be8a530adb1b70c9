"""Random legal actions.

Axes: E environment copies, N agents, A actions.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from envs.base import BoolArray, EnvSpec


def random_actions(
    spec: EnvSpec, rng: np.random.Generator, action_mask: BoolArray | None
) -> npt.NDArray[Any]:
    """Return (E, N) integers uniform over the legal choices, or (E, N, A) floats in [-1, 1].

    Dimensions beyond an agent's own size are zero.
    """
    shape = (spec.num_envs, spec.num_agents, spec.action_size)
    own = np.arange(spec.action_size) < np.asarray(spec.action_sizes)[:, None]
    if spec.action_kind == "continuous":
        return np.where(own, rng.uniform(-1.0, 1.0, shape), 0.0).astype(np.float32)
    legal = own if action_mask is None else own & action_mask
    chosen: npt.NDArray[np.int64] = np.where(legal, rng.random(shape), -1.0).argmax(axis=2)
    return chosen
