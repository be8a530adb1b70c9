"""A counting team and a labeller that fail in the middle of a run, as long as a file says so."""

import math
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from envs.adapters.team import TeamView
from envs.adapters.team_env import TeamEnv
from marl import EpisodePairs
from tests.counting_team import CountingTeam

ENV_FAULTS = (
    "raise", "exit", "sys.exit", "hang", "text", "four",
    "nan obs", "infinite reward", "infinite state",
)  # fmt: skip
JUDGE_FAULTS = ("raise", "exit", "sys.exit", "hang", "text", "infinite", "shape", "nothing")


def fail(how: str, file: Path) -> None:
    """Do what both can do wrong, if `how` names it; who hangs leaves a sign beside the file."""
    match how:
        case "exit":
            os._exit(7)
        case "sys.exit":
            sys.exit(3)
        case "hang":
            file.with_suffix(".hung").touch()
            while True:
                time.sleep(0.1)
        case "raise":
            raise KeyError("the key of the matter")


class FragileTeam(CountingTeam):
    """Fails in its step number `fails_at` while the file `fault` is there, which names how."""

    def __init__(self, fault: str, fails_at: int) -> None:
        super().__init__()
        self.file, self.fails_at, self.steps = Path(fault), fails_at, 0

    def step(self, actions: npt.NDArray[Any], view: TeamView) -> tuple[float, bool, bool]:
        self.steps += 1
        if self.steps != self.fails_at or not self.file.exists():
            return super().step(actions, view)
        how = self.file.read_text().split(" at ")[0]
        fail(how, self.file)
        answer: Any = super().step(actions, view)
        match how:
            case "nan obs":
                view.obs[1, 1] = np.nan
            case "infinite reward":
                return math.inf, *answer[1:]
            case "infinite state":
                view.state[1] = np.inf
            case "text":
                return "much", *answer[1:]  # type: ignore[return-value]
            case "four":
                return *answer, {}  # type: ignore[return-value]
        return answer  # type: ignore[no-any-return]


def fragile(num_envs: int, workers: int, fault: str, fails_at: int) -> TeamEnv:
    """Return environments of a fragile team; to be named `tests.fragile:fragile`."""
    return TeamEnv(partial(FragileTeam, fault, fails_at), num_envs, workers=workers)


def _told() -> tuple[Path, int]:
    """Return the file that the environment variable FRAGILE names, and the moment it tells."""
    file = Path(os.environ["FRAGILE"])
    return file, int(file.read_text().split(" at ")[1]) if file.exists() else 0


def told(num_envs: int, workers: int) -> TeamEnv:
    """Return environments of a fragile team whose settings do not say when and how it fails."""
    file, fails_at = _told()
    team = partial(FragileTeam, str(file), fails_at)
    return TeamEnv(team, num_envs, workers=workers, timeout=10.0)


class Judge:
    """Prefers larger returns, now and then at random, and fails from a call on when told to."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator, self.calls = generator, 0
        self.file, self.fails_at = _told()

    def __call__(self, pairs: EpisodePairs) -> object:
        self.calls += 1
        labels = (pairs.first.returns > pairs.second.returns).float()
        labels[torch.rand(len(pairs), generator=self.generator) < 0.2] = 0.5
        if not self.fails_at or self.calls < self.fails_at:
            return labels
        how = self.file.read_text().split(" at ")[0]
        fail(how, self.file)
        wrong: dict[str, object] = {
            "text": "first",
            "infinite": labels * torch.inf,
            "shape": labels[None, None],
        }
        return wrong.get(how)

    def state_dict(self) -> dict[str, Any]:
        return {"calls": self.calls}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.calls = state["calls"]
