"""The command ``marl new``: an environment of your own to begin with, and its test."""

from pathlib import Path
from typing import Annotated

import tyro

from marl.config import ConfigError
from marl.config.validation import settings
from marl.utils.files import atomic_write, output

ENVIRONMENT = '''"""Two agents name each other's coin; paid at the end, the share that is right."""

import numpy as np
from gymnasium import spaces
from pettingzoo import ParallelEnv


class Env(ParallelEnv):
    metadata = {"name": "NAME"}

    def __init__(self, length=5):  # marl train --env.options length 10
        self.possible_agents = ["left", "right"]
        self.length = length
        self.max_steps = length + 1  # no episode takes longer; this one ends by itself before

    def observation_space(self, agent):  # what an agent sees: both coins
        return spaces.Box(0.0, 1.0, (2,), np.float32)

    def action_space(self, agent):  # what it does: it names a side
        return spaces.Discrete(2)

    def reset(self, seed=None, options=None):
        self.random = np.random.default_rng(seed)  # all randomness comes from the seed
        self.agents, self.steps, self.right = list(self.possible_agents), 0, 0
        self.coins = self.random.integers(0, 2, 2)
        return self._seen(), {agent: {} for agent in self.agents}

    def step(self, actions):
        named = [actions[agent] for agent in self.possible_agents]
        self.right += int((named == self.coins[::-1]).sum())
        self.steps += 1
        over, agents = self.steps == self.length, self.agents
        reward = self.right / (2 * self.length) if over else 0.0  # one for the team, at the end
        self.coins = self.random.integers(0, 2, 2)
        if over:
            self.agents = []
        same = {agent: over for agent in agents}  # the task ends: terminated, not truncated
        nothing = {agent: False for agent in agents}
        infos = {agent: {} for agent in agents}
        return self._seen(), {agent: reward for agent in agents}, same, nothing, infos

    def _seen(self):
        coins = self.coins.astype(np.float32)
        return {agent: coins.copy() for agent in self.possible_agents}
'''

TEST = '''"""NAME keeps the contract of an environment: pytest test_NAME.py"""

from envs import check_env, make_env


def test_keeps_the_contract():
    assert check_env(make_env("NAME:Env", 2, workers=0), steps=40) == []
'''


@settings("--")
class New:
    """Write an environment of your own to begin with, NAME.py, and its test."""

    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME")]
    """Name of the module, e.g. my_env; the files are written to the current folder."""

    def run(self) -> int:
        """Write the files and say what to do with them."""
        if not self.name.isidentifier():
            raise ConfigError(f"{self.name!r} is no name of a Python module, such as my_env")
        files = {f"{self.name}.py": ENVIRONMENT, f"test_{self.name}.py": TEST}
        for path in map(Path, files):
            if path.exists():
                raise ConfigError(f"{path} is there already; choose another name")
        for file, text in files.items():
            with output(Path(file), "choose a folder that can be written"):
                atomic_write(Path(file), text.replace("NAME", self.name).encode())
        print(
            f"{self.name}.py and its test, test_{self.name}.py: change them to your task, then\n"
            f"  marl check {self.name}:Env\n"
            f"  marl train --env.name {self.name}:Env\n"
            f"  pytest test_{self.name}.py  # after pip install pytest"
        )
        return 0
