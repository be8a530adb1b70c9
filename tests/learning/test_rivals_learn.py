"""Methods of others reach the known optimum of a tiny task, and see what their papers promise.

`keys`: agents take a key in the first step and turn it in the last; the team is paid the share that
had the right one. Optimum 1, random .25; who turns keys taken at random gets .5.

Axes: M episodes, L steps, N agents.
"""

from typing import Any

import pytest
import torch

from marl.config import RewardConfig
from marl.config.presets import PRESETS, REWARD_LOSSES, REWARD_MODELS
from marl.config.schema import SequenceConfig
from marl.data.types import EpisodeBatch, History, Transitions
from marl.nn.normalisation import TeamNorm
from marl.rewards import RewardLearner
from marl.utils import plugins
from tests.learning.test_probes_learn import trained
from tests.reward_models import CPU, generator, make_spec, make_steps, uniform_policy

EPISODES = ["rudder", "arel", "stas", "tar2"]
"""Algorithms whose rewards depend on all that has happened in an episode."""
SMALL: dict[str, Any] = {"layers": 1, "variance_weight": 1.0}
"""In so short episodes AREL's weight of the variance, 20, would be most of its loss."""


@pytest.mark.parametrize("algorithm", EPISODES)
def test_rewards_of_whole_episodes_reach_the_optimum(algorithm: str) -> None:
    # Optimum 1, random .25.
    options = {f"reward.sequence.{name}": value for name, value in SMALL.items()}
    _, first, last = trained("probe/keys", algorithm, 6_000, **options)
    assert first < 0.6
    assert last > 0.9


class RandomPlay:
    """Episodes of four steps as in `keys`: the first feature shows the key, the second the door."""

    def __init__(self) -> None:
        self.drawn = 0

    def batch(self, *, held_out: bool = False) -> EpisodeBatch:
        """Return new episodes."""
        self.drawn += 1
        count = 256 if held_out else 32
        steps = make_steps(self.drawn, count, 4, terminated=0.0)
        fits = torch.randint(2, steps.obs[:, 0, :, 0].shape, generator=generator(-self.drawn))
        steps.obs.zero_()
        steps.obs[:, 0, :, 0] = 2.0 * fits - 1.0
        steps.obs[:, 3, :, 1] = 1.0
        opens = (steps.actions[:, 0] == fits) & (steps.actions[:, 3] == 0)
        offsets = torch.arange(4).expand(count, 4)
        history = History(starts=offsets == 0, time_axis=1, present=offsets >= 0)
        none = torch.zeros(0, dtype=torch.int64)
        return EpisodeBatch(
            transitions=Transitions(**vars(steps) | {"history": history}),
            step_weights=torch.ones(count, 4),
            lengths=torch.full((count,), 4),
            returns=opens.to(torch.float32).mean(dim=-1),
            first=none,
            second=none,
            labels=torch.zeros(0),
            return_scale=0.25,  # of three agents: (3/16 / 3)^.5
        )


@pytest.mark.parametrize(
    ("algorithm", "gradient_steps", "learning_rate"),
    [
        ("rrd", 400, 5e-3),
        ("rudder", 400, 2e-2),
        ("arel", 150, 5e-3),
        ("stas", 150, 5e-3),
        ("tar2", 150, 5e-3),
    ],
)
def test_rewards_of_whole_episodes_tell_a_cause_from_its_delayed_effect(
    algorithm: Any, gradient_steps: int, learning_rate: float
) -> None:
    """How the rewards' sums correlate with the returns of random play.

    An agent's pay is the product of two fair coins, of variance 3/16. A sum over single steps
    explains at most 2/16 of it, so that it correlates (2/3)^.5 = .82; what reads both steps may
    correlate 1.
    """
    spec, choice = make_spec(), PRESETS[algorithm]
    config = RewardConfig(
        hidden_sizes=(32,),
        gradient_steps=gradient_steps,
        learning_rate=learning_rate,
        sequence=SequenceConfig(**SMALL),
    )
    kind = plugins.load(REWARD_MODELS[choice.model].path, "reward.model")
    loss = plugins.load(REWARD_LOSSES[choice.loss].path, "reward.loss")
    model = kind(spec, config, 0.0, TeamNorm(spec, enabled=False), generator())
    learner = RewardLearner(model, "", config, 10, loss=loss(config, 10), threads=1, device=CPU)
    found = learner.fit(RandomPlay(), uniform_policy)["regression/correlation"]
    if algorithm == "rrd":
        assert 0.7 < found < 0.87
    else:
        assert found > 0.93
