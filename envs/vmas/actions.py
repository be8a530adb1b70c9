"""What VMAS calls actions, from ours.

Axes: E environment copies, N agents, A actions.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


class VmasActions:
    """The action spaces of a VMAS environment's agents.

    Continuous: [-1, 1] is scaled to each agent's own range; messages, where it sends them, to
    [0, 1]. Discrete: VMAS's own numbers, 0 being to do nothing.
    """

    def __init__(self, env: Any) -> None:
        self._continuous: bool = env.continuous_actions
        spaces = list(env.action_space)
        if self._continuous:
            self.sizes: tuple[int, ...] = tuple(space.shape[0] for space in spaces)
            """Dimensions or choices of each agent's action."""
            self._low = [torch.from_numpy(space.low) for space in spaces]
            self._high = [torch.from_numpy(space.high) for space in spaces]
        else:
            self.sizes = tuple(int(space.n) for space in spaces)

    def split(self, actions: npt.NDArray[Any]) -> list[Tensor]:
        """Return one (E, A) or (E, 1) tensor per agent from legal actions."""
        if not self._continuous:
            chosen = torch.from_numpy(actions.astype(np.int64))
            return [chosen[:, agent, None] for agent in range(len(self.sizes))]
        given = torch.from_numpy(actions.astype(np.float32))
        return [
            # VMAS refuses what rounding takes past the ends of a range.
            ((low + high) / 2.0 + given[:, agent, :size] * (high - low) / 2.0).clamp(low, high)
            for agent, (size, low, high) in enumerate(
                zip(self.sizes, self._low, self._high, strict=True)
            )
        ]
