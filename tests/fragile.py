"""A counting team that fails in the middle of a run, as long as a file says so."""

import math
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from envs.adapters.team import TeamView
from envs.adapters.team_env import TeamEnv
from tests.counting_team import CountingTeam


class FragileTeam(CountingTeam):
    """Fails in its step number `fails_at` while the file `fault` is there, which names how."""

    def __init__(self, fault: str, fails_at: int) -> None:
        super().__init__()
        self.file, self.fails_at, self.steps = Path(fault), fails_at, 0

    def step(self, actions: npt.NDArray[Any], view: TeamView) -> tuple[float, bool, bool]:
        self.steps += 1
        if self.steps == self.fails_at and self.file.exists():
            match self.file.read_text():
                case "exit":
                    os._exit(7)
                case "sys.exit":
                    sys.exit(3)
                case "nan obs":
                    answer = super().step(actions, view)
                    view.obs[1, 1] = np.nan
                    return answer
                case "infinite reward":
                    return math.inf, *super().step(actions, view)[1:]
                case "infinite state":
                    answer = super().step(actions, view)
                    view.state[1] = np.inf
                    return answer
                case _:
                    raise KeyError("the key of the matter")
        return super().step(actions, view)


def fragile(num_envs: int, workers: int, fault: str, fails_at: int) -> TeamEnv:
    """Return copies of a fragile team; to be named `tests.fragile:fragile`."""
    return TeamEnv(partial(FragileTeam, fault, fails_at), num_envs, workers=workers)
