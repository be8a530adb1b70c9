"""Nothing depends on the unit in which an environment counts its rewards or its observations."""

import pytest
import torch

from marl.config import Config, EnvConfig, LearnerConfig
from marl.learners.gae import standardise
from marl.nn.normalisation import InputNorm, ValueNorm
from marl.trainer import Trainer
from tests.small_rewards import UNITS

SCALES = [2.0**-30, 2.0**-20, 2.0**20, 2.0**26]
"""Powers of two, by which floating-point numbers are multiplied exactly: about 1e-9 to 1e8."""


@pytest.mark.parametrize("scale", SCALES)
def test_value_targets_are_standardised_in_any_unit(scale: float) -> None:
    targets = torch.randn(100, generator=torch.Generator().manual_seed(0)) + 3.0
    one, other = ValueNorm(), ValueNorm()
    one.update(targets)
    other.update(targets * scale)
    assert float(other.std) == float(one.std) * scale
    assert torch.equal(other.normalise(targets * scale), one.normalise(targets))


@pytest.mark.parametrize("scale", SCALES)
def test_inputs_are_standardised_in_any_unit(scale: float) -> None:
    x = torch.randn(100, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 5, 9])
    one, other = InputNorm(3), InputNorm(3)
    one.update(x)
    other.update(x * scale)
    assert torch.equal(other(x * scale), one(x))


@pytest.mark.parametrize("scale", SCALES)
def test_advantages_are_standardised_in_any_unit(scale: float) -> None:
    advantages = torch.randn(50, generator=torch.Generator().manual_seed(0))
    present = torch.arange(50) % 3 > 0
    assert torch.equal(standardise(advantages * scale), standardise(advantages))
    assert torch.equal(standardise(advantages * scale, present), standardise(advantages, present))


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, -1e-12, 3e7])
def test_equal_values_have_no_deviation(value: float) -> None:
    """0.1 ten times over has a variance of rounding; divided by it, rounding would be learned."""
    norm, inputs = ValueNorm(), InputNorm(1)
    norm.update(torch.full((10,), value))
    inputs.update(torch.full((10, 1), value))
    assert float(norm.std) == 1.0
    assert inputs(torch.full((1, 1), value)).abs().item() <= 1e-6 * max(1.0, abs(value))
    assert standardise(torch.full((8,), 0.0)).abs().max() == 0.0


def test_a_small_deviation_around_a_large_mean_is_seen() -> None:
    """Mean 1,000 and deviation 0.5: 2,000 times smaller, far above rounding."""
    x = 1000.0 + 0.5 * torch.randn(4096, 1, generator=torch.Generator().manual_seed(0))
    norm = InputNorm(1)
    norm.update(x)
    assert float(norm(x).std()) == pytest.approx(1.0, abs=0.02)


def trained(unit: str) -> list[dict[str, float]]:
    config = Config(
        algorithm="sparse",
        env=EnvConfig(
            name="particles/nav_3",
            num_envs=8,
            options={"reward_mode": "outcome", "reward_outcome": f"tests.small_rewards:{unit}"},
        ),
        learner=LearnerConfig(rollout_steps=25, epochs=2, minibatches=2),
        total_steps=8 * 25 * 6,
        threads=1,
    )
    trainer = Trainer(config)
    return [trainer.iterate() for _ in range(6)]


@pytest.mark.parametrize("unit", ["tiny", "huge"])
def test_the_policy_learns_the_same_from_a_reward_in_another_unit(unit: str) -> None:
    """The same steps are taken, bit for bit, while returns are 2^-26 or 2^26 times as large."""
    for one, other in zip(trained("plain"), trained(unit), strict=True):
        for name in ("policy/loss", "policy/kl", "value/loss_team", "return/length"):
            assert one[name] == other[name], name
        assert other["return/mean"] == one["return/mean"] * UNITS[unit]
