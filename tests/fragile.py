"""A counting team that fails in the middle of a run, as long as a file says so."""

import os
from functools import partial
from pathlib import Path
from typing import Any

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
            if self.file.read_text() == "exit":
                os._exit(7)
            raise KeyError("the key of the matter")
        return super().step(actions, view)


def fragile(num_envs: int, workers: int, fault: str, fails_at: int) -> TeamEnv:
    """Return copies of a fragile team; to be named `tests.fragile:fragile`."""
    return TeamEnv(partial(FragileTeam, fault, fails_at), num_envs, workers=workers)
