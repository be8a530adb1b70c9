"""In which units an environment counts its rewards and observations changes nothing learned.

Units are powers of two, so that a change of unit rounds nothing and equal means equal.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from pettingzoo import ParallelEnv

import marl
from marl.nn.normalisation import InputNorm
from tests.small_runs import small

UNITS = [2.0**-27, 2.0**27]
"""About 1e-8 and 1e8."""


class Counter(ParallelEnv[str, np.ndarray, int]):
    """Two agents see a number in [0, 1) and are paid for telling whether it is above one half."""

    def __init__(self, reward_unit: float = 1.0, max_steps: int = 5) -> None:
        self.metadata = {"name": "counter"}
        self.possible_agents = ["left", "right"]
        self.reward_unit, self.max_steps = reward_unit, max_steps

    def observation_space(self, agent: str) -> Box:
        return Box(0.0, 1.0, (1,))

    def action_space(self, agent: str) -> Discrete:
        return Discrete(2)

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        if seed is not None:
            self.rng = np.random.default_rng(seed)
        self.agents, self.time = self.possible_agents[:], 0
        return self._seen(), {agent: {} for agent in self.agents}

    def step(self, actions: dict[str, int]) -> Any:
        right = sum(int(a) == int(self.number[0] > 0.5) for a in actions.values())
        self.time += 1
        over = self.time == self.max_steps
        who, seen = self.possible_agents, self._seen()
        self.agents = [] if over else self.agents
        return (
            seen,
            dict.fromkeys(who, self.reward_unit * right),
            dict.fromkeys(who, False),
            dict.fromkeys(who, over),
            {agent: {} for agent in who},
        )

    def _seen(self) -> dict[str, np.ndarray]:
        self.number = self.rng.uniform(0.0, 1.0, 1).astype(np.float32)
        return dict.fromkeys(self.possible_agents, self.number)


def trained(
    folder: Path, unit: float, options: dict[str, object], **settings: object
) -> dict[str, torch.Tensor]:
    """Return the actor's weights after a short run."""
    options = {"reward_unit": unit, "max_steps": 5, "workers": 0} | options
    config = small(
        **{
            "env.name": "tests.contract.test_units:Counter",
            "env.options": options,
            "total_steps": 240,
            **settings,
        }
    )
    for _ in marl.train(config, folder):
        pass
    return marl.load(folder).actor.state_dict()


@pytest.fixture(
    scope="module", params=[("sparse", "dense"), ("sparse", "episodic"), ("imap", "episodic")]
)
def in_units_of_one(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return settings, and the weights that they lead to; they are not those of the beginning."""
    algorithm, mode = request.param
    options = {} if mode == "dense" else {"reward_mode": mode}
    settings: dict[str, Any] = {"algorithm": algorithm, "options": options}
    folder = tmp_path_factory.mktemp("one")
    weights = trained(folder / "long", 1.0, **settings)
    before = trained(folder / "short", 1.0, **settings, total_steps=80)
    assert any(not torch.equal(before[name], weights[name]) for name in weights)
    return settings, weights


@pytest.mark.parametrize("unit", UNITS)
def test_the_unit_of_rewards_changes_nothing(
    unit: float,
    in_units_of_one: tuple[dict[str, Any], dict[str, torch.Tensor]],
    tmp_path: Path,
) -> None:
    settings, expected = in_units_of_one
    for name, weights in trained(tmp_path / "run", unit, **settings).items():
        assert torch.equal(weights, expected[name]), name


@pytest.mark.parametrize("unit", UNITS)
def test_the_unit_of_observations_changes_nothing_that_networks_read(unit: float) -> None:
    seen = torch.randn(4, 64, 2, 3, generator=torch.Generator().manual_seed(0)) + 5.0
    one, other = InputNorm(2, 3), InputNorm(2, 3)
    for batch in seen:
        one.update(batch)
        other.update(unit * batch)
    assert torch.equal(one(seen), other(unit * seen))
    assert one(seen).std() == pytest.approx(1.0, abs=0.1)
