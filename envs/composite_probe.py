"""The probe for actions of several parts: `probe/composite`.

Axes are those of `envs.base`; T: steps of an episode.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from envs.base import BoolArray, EnvError, EnvSpec, FloatArray
from envs.simulated import Arrays, SimulatedEnv, View

_PARTS = ((3, 2), (3, 0))
_SPANS = ((0, slice(0, 3)), (0, slice(3, 5)), (1, slice(0, 3)))
"""Agent and columns of each choice."""


def composite(num_envs: int, *, max_steps: int = 8) -> SimulatedEnv:
    """Return two agents that must name what they see in every part of their actions.

    Agent 0 sees a cue among 3 and one among 2, and names both; of the first choice one wrong option
    is illegal. Agent 1 sees a cue among 3 and a number u in [-1, 1], names the one and acts the
    other. A step pays the mean of four: each cue that is named right counts 1, the number
    1 - |a - u|. Optimum T (8); random 5 T / 12 (10/3). The task ends after T steps.
    """
    if max_steps < 1:
        raise EnvError(f"probe/composite: max_steps is {max_steps}; give at least 1")
    spec = EnvSpec(
        name="probe/composite",
        num_envs=num_envs,
        obs_sizes=(5, 4),
        state_size=9,
        action_kind="composite",
        action_parts=_PARTS,
        action_sizes=(5, 4),
        max_steps=max_steps,
        finite_horizon=True,
        masks_actions=True,
    )
    return SimulatedEnv(spec, _Naming(max_steps))


@dataclass(frozen=True)
class _Naming:
    """The functions of `composite`."""

    max_steps: int

    @property
    def num_draws(self) -> int:
        """Five numbers per step: three cues, the number, and which option is illegal."""
        return (self.max_steps + 1) * 5

    def begin(self, draws: FloatArray) -> Arrays:
        """Return (C, T + 1, ...) cues, numbers and illegal options of new episodes."""
        drawn = draws.reshape(-1, self.max_steps + 1, 5)
        cues = (drawn[..., :3] * [3, 2, 3]).astype(np.int64)
        numbers = (2.0 * drawn[..., 3] - 1.0).astype(np.float32)
        illegal = (cues[..., 0] + 1 + (drawn[..., 4] < 0.5)) % 3
        return {"cues": cues, "numbers": numbers, "illegal": illegal}

    def view(self, arrays: Arrays, steps: npt.NDArray[np.int64]) -> View:
        """Return each agent's cues one-hot, agent 1's number behind its own."""
        rows = np.arange(len(steps))
        cues, illegal = arrays["cues"][rows, steps], arrays["illegal"][rows, steps]
        obs = np.zeros((len(rows), 2, 5), np.float32)
        for cue, (agent, span) in enumerate(_SPANS):
            obs[rows, agent, span.start + cues[:, cue]] = 1.0
        obs[:, 1, 3] = arrays["numbers"][rows, steps]
        mask = np.ones((len(rows), 2, 5), np.bool_)
        mask[:, 1, 4] = False
        mask[rows, 0, illegal] = False
        return View(obs=obs, state=np.delete(obs.reshape(-1, 10), 9, axis=1), action_mask=mask)

    def advance(
        self, arrays: Arrays, steps: npt.NDArray[np.int64], actions: npt.NDArray[Any]
    ) -> tuple[Arrays, FloatArray, BoolArray]:
        """Return the mean over the parts of what each of them is worth."""
        rows = np.arange(len(steps))
        cues = arrays["cues"][rows, steps]
        worth = 1.0 - np.abs(actions[:, 1, 3] - arrays["numbers"][rows, steps].astype(np.float64))
        for cue, (agent, span) in enumerate(_SPANS):
            worth += actions[:, agent, span].argmax(axis=1) == cues[:, cue]
        return arrays, worth / 4.0, np.zeros(len(rows), np.bool_)
