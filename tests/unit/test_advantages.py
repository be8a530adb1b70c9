"""GAE against a plain loop and against numbers worked by hand; the two streams put together."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from marl.learners.gae import dual_advantages, explained_variance, gae, standardise


def looped_gae(
    rewards: Tensor,
    values: Tensor,
    next_values: Tensor,
    terminated: Tensor,
    ends: Tensor,
    gamma: float,
    gae_lambda: float,
) -> Tensor:
    """Return the recursion A_t = delta_t + gamma lambda (1 - ends_t) A_{t+1}, step by step."""
    advantages = torch.zeros_like(rewards)
    following = torch.zeros_like(rewards[0])
    for t in reversed(range(len(rewards))):
        for copy in range(rewards.shape[1]):
            bootstrap = 0.0 if terminated[t, copy] else next_values[t, copy]
            carry = following[copy] * ~ends[t, copy]
            delta = rewards[t, copy] + gamma * bootstrap - values[t, copy]
            advantages[t, copy] = delta + gamma * gae_lambda * carry
        following = advantages[t]
    return advantages


@given(
    steps=st.integers(1, 17),
    agents=st.sampled_from([None, 1, 3]),
    seed=st.integers(0, 2**31 - 1),
    gamma=st.sampled_from([0.0, 0.9, 1.0]),
    gae_lambda=st.sampled_from([0.0, 0.95, 1.0]),
)
def test_gae_equals_the_backward_loop(
    steps: int, agents: int | None, seed: int, gamma: float, gae_lambda: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    shape = (steps, 2) if agents is None else (steps, 2, agents)
    rewards, values, next_values = torch.randn((3, *shape), generator=generator)
    terminated = torch.rand((steps, 2), generator=generator) < 0.2
    ends = torch.rand(shape, generator=generator) < 0.2
    ends |= terminated.view(steps, 2, *([1] * (len(shape) - 2)))
    arguments = (rewards, values, next_values, terminated, ends, gamma, gae_lambda)
    assert torch.allclose(gae(*arguments), looped_gae(*arguments), atol=1e-5)


def column(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float32).unsqueeze(-1)


def test_three_steps_worked_by_hand() -> None:
    # gamma .5, lambda .5, so gamma lambda = .25. The episode goes on after step 2.
    # delta_2 = 3 + .5 * 8 - 4 = 3             A_2 = 3
    # delta_1 = 2 + .5 * 4 - 2 = 2             A_1 = 2 + .25 * 3 = 2.75
    # delta_0 = 1 + .5 * 2 - 1 = 1             A_0 = 1 + .25 * 2.75 = 1.6875
    nowhere = torch.zeros(3, 1, dtype=torch.bool)
    advantages = gae(column(1, 2, 3), column(1, 2, 4), column(2, 4, 8), nowhere, nowhere, 0.5, 0.5)
    assert torch.equal(advantages, column(1.6875, 2.75, 3))


def test_a_terminated_step_bootstraps_from_zero_and_cuts_the_trace() -> None:
    # Step 1 terminates: delta_1 = 2 - 2 = 0, A_1 = 0; A_0 = 1 + .25 * 0 = 1; A_2 = 3 as above.
    ended = column(0, 1, 0).bool()
    advantages = gae(column(1, 2, 3), column(1, 2, 4), column(2, 9, 8), ended, ended, 0.5, 0.5)
    assert torch.equal(advantages, column(1, 0, 3))


def test_a_truncated_step_bootstraps_from_its_real_final_state_and_cuts_the_trace() -> None:
    # Step 1 is truncated in a state worth 6, the reset state is worth 4:
    # delta_1 = 2 + .5 * 6 - 2 = 3, A_1 = 3; A_0 = 1 + .25 * 3 = 1.75; A_2 = 3 as above.
    nowhere, ended = torch.zeros(3, 1, dtype=torch.bool), column(0, 1, 0).bool()
    advantages = gae(column(1, 2, 3), column(1, 2, 4), column(2, 6, 8), nowhere, ended, 0.5, 0.5)
    assert torch.equal(advantages, column(1.75, 3, 3))


def test_standardise_by_hand() -> None:
    # Mean 3, deviation 2: (1 - 3) / 2 and (5 - 3) / 2.
    assert torch.allclose(standardise(torch.tensor([1.0, 5.0])), torch.tensor([-1.0, 1.0]))


def test_standardise_ignores_absent_rows_and_returns_zero_there() -> None:
    advantages = torch.tensor([1.0, float("nan"), 5.0, 1e9])
    present = torch.tensor([True, False, True, False])
    standardised = standardise(advantages, present)
    assert torch.allclose(standardised, torch.tensor([-1.0, 0.0, 1.0, 0.0]))


def test_standardise_of_nothing_and_of_a_constant_is_zero() -> None:
    nobody = torch.zeros(3, dtype=torch.bool)
    assert torch.equal(standardise(torch.ones(3), nobody), torch.zeros(3))
    assert torch.equal(standardise(torch.ones(3)), torch.zeros(3))


TEAM = torch.tensor([[1.0, 5.0]])  # T = 1, E = 2; standardised -1, 1
LOCAL = torch.tensor([[[10.0, 30.0], [30.0, 10.0]]])  # mean 20, deviation 10: -1, 1, 1, -1


@pytest.mark.parametrize(
    ("omega", "expected"),
    [
        (0.0, [[[-1.0, -1.0], [1.0, 1.0]]]),
        (1.0, [[[-1.0, 1.0], [1.0, -1.0]]]),
        (0.5, [[[-1.0, 0.0], [1.0, 0.0]]]),
        (0.25, [[[-1.0, -0.5], [1.0, 0.5]]]),  # .25 * 1 + .75 * -1 = -.5
    ],
)
def test_dual_advantages_by_hand(omega: float, expected: list[list[list[float]]]) -> None:
    assert torch.allclose(
        dual_advantages(TEAM, LOCAL, None, 2, omega), torch.tensor(expected), atol=1e-6
    )


def test_omega_zero_leaves_no_trace_of_the_local_stream() -> None:
    broken = torch.full_like(LOCAL, float("nan"))
    assert torch.equal(
        dual_advantages(TEAM, broken, None, 2, 0.0), dual_advantages(TEAM, None, None, 2, 0.5)
    )


def test_omega_one_leaves_no_trace_of_the_team_stream() -> None:
    broken = torch.full_like(TEAM, float("nan"))
    assert torch.equal(dual_advantages(broken, LOCAL, None, 2, 1.0), standardise(LOCAL))


def test_dead_agents_do_not_move_the_local_statistics() -> None:
    alive = torch.tensor([[[True, True], [True, False]]])
    shifted = torch.tensor([[[10.0, 30.0], [20.0, 1e6]]])
    advantages = dual_advantages(TEAM, shifted, alive, 2, 1.0)
    # Mean 20, variance (100 + 100 + 0) / 3 over the three that live.
    expected = torch.tensor([[[-1.2247, 1.2247], [0.0, 0.0]]])
    assert torch.allclose(advantages, expected, atol=1e-3)


def test_a_single_row_that_is_present_stands_at_zero() -> None:
    present = torch.tensor([False, True, False])
    assert standardise(torch.tensor([1.0, 5.0, 9.0]), present).tolist() == [0.0, 0.0, 0.0]


def test_streams_are_weighted_not_divided() -> None:
    # (0, 0, 3): mean 1, deviation sqrt 2: (-1, -1, 2) / sqrt 2; (6, 0, 0) alike: (2, -1, -1). A
    # quarter of the local and three quarters of the team's: (-.25, -1, 1.25) / sqrt 2.
    team, local = torch.tensor([[0.0, 0.0, 3.0]]), torch.tensor([[[6.0], [0.0], [0.0]]])
    mixed = dual_advantages(team, local, None, 1, 0.25)
    assert torch.allclose(mixed * 2**0.5, torch.tensor([[[-0.25], [-1.0], [1.25]]]), atol=1e-6)


def test_explained_variance_by_hand() -> None:
    # What the value misses is 1 and -1, of variance 2; the targets 0 and 4 have variance 8.
    missed, targets = torch.tensor([1.0, -1.0, 50.0]), torch.tensor([0.0, 4.0, -90.0])
    present = torch.tensor([True, True, False])
    assert explained_variance(missed, targets, present).item() == 0.75
    assert explained_variance(missed[:2], targets[:2], None).item() == 0.75
    # Constant targets that are met are explained.
    assert explained_variance(torch.zeros(2), torch.ones(2), None).item() == 1.0
