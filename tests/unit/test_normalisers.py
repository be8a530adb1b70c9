"""Running statistics of inputs and values."""

import pytest
import torch

from marl.learners.critics import TeamCritic
from marl.nn.normalisation import InputNorm, TeamNorm, ValueNorm
from tests.learners import LENGTHS, NETWORK, assert_same, generator
from tests.reward_models import make_spec, make_steps
from tests.scripted import ScriptedEnv


def test_value_statistics_are_saved_with_the_critic() -> None:
    critic = TeamCritic(ScriptedEnv(LENGTHS).spec, NETWORK, generator())
    assert {f"value_norm.{n}" for n in ("first", "second", "weight")} <= critic.state_dict().keys()
    assert not any("value_norm" in name for name, _ in critic.named_parameters())


def test_value_statistics_by_hand() -> None:
    # Rate .01, corrected for the start at zero: the first batch counts alone (mean 2, deviation
    # 1); then weights .99 * .01 and .01 on means 2 and 4 and squares 5 and 16.
    norm = ValueNorm()
    assert (float(norm.mean), float(norm.std)) == (0.0, 1.0)
    norm.update(torch.tensor([1.0, 3.0]))
    assert norm.mean.item() == pytest.approx(2.0, rel=1e-5)
    assert norm.std.item() == pytest.approx(1.0, rel=1e-4)
    norm.update(torch.tensor([4.0]))
    mean, second = (0.99 * 2 + 4) / 1.99, (0.99 * 5 + 16) / 1.99
    assert norm.mean.item() == pytest.approx(mean, rel=1e-5)
    assert norm.std.item() == pytest.approx((second - mean**2) ** 0.5, rel=1e-4)
    values = torch.tensor([-3.0, 0.0, 7.0])
    assert torch.allclose(norm.denormalise(norm.normalise(values)), values, atol=1e-5)


def test_value_statistics_survive_targets_far_from_zero() -> None:
    # Mean 1,000, deviation .1: the square of the mean must not drown the variance.
    norm = ValueNorm()
    targets = 1000.0 + 0.1 * torch.randn(4096, generator=generator())
    for _ in range(3):
        norm.update(targets)
    assert norm.std.item() == pytest.approx(0.1, rel=0.05)


def test_value_statistics_ignore_dead_rows() -> None:
    norm, living = ValueNorm(), ValueNorm()
    present = torch.tensor([True, False, True])
    norm.update(torch.tensor([1.0, 1e6, 3.0]), present)
    living.update(torch.tensor([1.0, 3.0]))
    assert_same(norm.state_dict(), living.state_dict())
    norm.update(torch.tensor([5.0]), torch.tensor([False]))
    assert_same(norm.state_dict(), living.state_dict())


def test_dead_agents_leave_the_input_statistics() -> None:
    # Agent 0 shows 1 and 3 while alive, agent 1 is dead throughout; then agent 1 shows 4 and 6.
    norm = InputNorm(2, 1)
    present = torch.tensor([[True, False], [True, False], [False, False]])
    norm.update(torch.tensor([[[1.0], [9.0]], [[3.0], [9.0]], [[9.0], [9.0]]]), present)
    assert norm.mean.flatten().tolist() == [2.0, 0.0]
    assert norm.var.flatten().tolist() == [1.0, 1.0]
    present = torch.tensor([[False, True], [False, True], [True, False]])
    norm.update(torch.tensor([[[9.0], [4.0]], [[9.0], [6.0]], [[5.0], [9.0]]]), present)
    # Agent 0 has seen 1, 3, 5: mean 3, variance 8 / 3. Agent 1 has seen 4, 6: mean 5, variance 1.
    assert norm.mean.flatten().tolist() == pytest.approx([3.0, 5.0])
    assert norm.var.flatten().tolist() == pytest.approx([8 / 3, 1.0])


def test_input_statistics_in_parts_equal_the_whole() -> None:
    x = 3.0 + 2.0 * torch.randn(50, 2, 3, generator=generator())
    norm = InputNorm(2, 3)
    for part in x.split([7, 30, 13]):
        norm.update(part)
    assert torch.allclose(norm.mean, x.mean(dim=0), atol=1e-5)
    assert torch.allclose(norm.var, x.var(dim=0, correction=0), atol=1e-4)
    standardised = norm(x)
    assert torch.allclose(standardised.mean(dim=0), torch.zeros(2, 3), atol=1e-5)
    assert torch.allclose(standardised.std(dim=0, correction=0), torch.ones(2, 3), atol=1e-4)


def test_inputs_are_standardised_and_clipped_by_hand() -> None:
    norm = InputNorm(2)
    x = torch.tensor([[1.0, -1.5], [30.0, -30.0]])
    assert norm(x).tolist() == [[1.0, -1.5], [10.0, -10.0]]  # nothing is known yet
    # One row is its own mean, of variance 0: differences count as they are.
    norm.update(torch.tensor([[5.0, 7.0]]))
    assert norm.mean.tolist() == [5.0, 7.0]
    assert norm.var.tolist() == [0.0, 0.0]
    assert norm(torch.tensor([6.0, 5.5])).tolist() == [1.0, -1.5]
    # With 9 and 9: means 7 and 8, deviations 2 and 1.
    norm.update(torch.tensor([[9.0, 9.0]]))
    assert norm(torch.tensor([9.0, 7.0])).tolist() == pytest.approx([1.0, -1.0], rel=1e-5)


@pytest.mark.parametrize("dies", [False, True])
def test_a_team_s_inputs_are_standardised_by_their_own_statistics(dies: bool) -> None:
    norm, steps = TeamNorm(make_spec(dies=dies), enabled=True), make_steps(0, 7, 4, dies=dies)
    norm.update(steps)
    for agent in range(3):
        seen = steps.obs[:, :, agent]
        rows = seen[steps.alive[:, :, agent]] if steps.alive is not None else seen.flatten(0, 1)
        expected = (seen - rows.mean(dim=0)) / rows.std(dim=0, correction=0)
        assert torch.allclose(norm.obs(steps.obs)[:, :, agent], expected, atol=1e-4)
    rows = steps.state.flatten(0, 1)
    expected = (steps.state - rows.mean(dim=0)) / rows.std(dim=0, correction=0)
    assert torch.allclose(norm.state(steps.state), expected, atol=1e-4)


def test_a_norm_that_is_switched_off_changes_nothing() -> None:
    norm, steps = TeamNorm(make_spec(), enabled=False), make_steps(0, 7, 4)
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    norm.update(steps)
    assert_same(norm.state_dict(), before)
    norm.obs_norm.update(steps.obs.flatten(0, 1))
    norm.state_norm.update(steps.state.flatten(0, 1))
    assert torch.equal(norm.obs(steps.obs), steps.obs)
    assert torch.equal(norm.state(steps.state), steps.state)


def test_values_of_equal_targets_are_their_mean() -> None:
    norm = ValueNorm()
    norm.update(torch.full((4,), 3.0))
    assert norm.std.item() == 1.0
    assert norm.normalise(torch.tensor(5.0)).item() == pytest.approx(2.0)
    assert norm.denormalise(torch.tensor(7.0)).item() == pytest.approx(3.0)


def test_targets_that_cancel_are_targets() -> None:
    norm = ValueNorm()
    norm.update(torch.tensor([-3.0, 3.0]))
    assert norm.denormalise(torch.tensor(2.0)).item() == pytest.approx(6.0)
