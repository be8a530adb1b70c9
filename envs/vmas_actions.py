"""What VMAS calls actions, from ours.

Axes: E environment copies, N agents, A actions.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from envs.base import EnvError


class VmasActions:
    """The action spaces of a VMAS environment's agents.

    Continuous: [-1, 1] is scaled to each agent's own range; messages, where it sends them, to
    [0, 1]. Discrete: VMAS's own numbers, 0 being to do nothing.
    """

    def __init__(self, env: Any, name: str) -> None:
        self._name = name
        self._continuous: bool = env.continuous_actions
        spaces = list(env.action_space)
        self._num_envs: int = env.num_envs
        if self._continuous:
            self.sizes: tuple[int, ...] = tuple(space.shape[0] for space in spaces)
            """Dimensions or choices of each agent's action."""
            self._low = [torch.from_numpy(space.low) for space in spaces]
            self._high = [torch.from_numpy(space.high) for space in spaces]
        else:
            self.sizes = tuple(int(space.n) for space in spaces)
        self._limits = np.asarray(self.sizes)

    def split(self, actions: npt.NDArray[Any]) -> list[Tensor]:
        """Return one (E, A) or (E, 1) tensor per agent, if the actions are legal."""
        actions = np.asarray(actions)
        self._check(actions)
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

    def _check(self, actions: npt.NDArray[Any]) -> None:
        """Raise `EnvError` naming the first action that is not legal."""
        shape: tuple[int, ...] = (self._num_envs, len(self.sizes))
        if self._continuous:
            shape = (*shape, max(self.sizes))
        wanted = "float" if self._continuous else "integer"
        if actions.shape != shape or (actions.dtype.kind in "iu") == self._continuous:
            raise EnvError(
                f"{self._name}: got {actions.dtype} actions of shape {actions.shape}; "
                f"give {wanted} actions of shape {shape}"
            )
        if self._continuous:
            legal = np.abs(actions) <= 1.0 + 1e-6
        else:
            legal = (actions >= 0) & (actions < self._limits)
        if not legal.all():
            where = tuple(int(index) for index in np.argwhere(~legal)[0])
            raise EnvError(
                f"{self._name}: action {actions[where]} of copy {where[0]}, agent {where[1]} is "
                f"illegal; stay within {'[-1, 1]' if self._continuous else self.sizes}"
            )
