"""The guard slows V down when the loss has risen, and only then; overfitting is told once."""

import warnings

import pytest

from marl.rewards.budget import AVERAGED_FITS, DriftGuard, OverfitWarning


def updated(guard: DriftGuard, losses: list[float]) -> None:
    for loss in losses:
        guard.update(loss)


def test_a_falling_or_steady_loss_leaves_the_rate() -> None:
    guard = DriftGuard(0.005, 0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        updated(guard, [0.7, 0.5, 0.3, 0.1] + [0.15, 0.05] * 50)
    assert guard.rate == 0.005


def test_one_outlier_is_forgiven() -> None:
    guard = DriftGuard(0.005, 0.1)
    updated(guard, [0.2] * 100 + [2.0] + [0.2] * 100)  # the average rises by 1.8 / 20 = 0.09
    assert guard.rate == 0.005
    assert guard.average == pytest.approx(0.2, abs=1e-3)


def test_a_risen_loss_halves_the_rate_and_says_so() -> None:
    guard = DriftGuard(0.008, 0.1)
    updated(guard, [0.2] * 50)
    # From 0.2 towards 0.4 by 1/20 of the way: above 0.3 once 0.95^n < 0.5, which is n = 14.
    updated(guard, [0.4] * 13)
    assert guard.rate == 0.008
    with pytest.warns(UserWarning, match=r"rose from 0.20 to 0.30; .* halved to 0.004"):
        guard.update(0.4)
    updated(guard, [0.4] * 200)  # 0.1 above the new lowest, 0.302, is never reached
    assert guard.rate == 0.004
    assert AVERAGED_FITS == 20


def test_the_average_is_the_mean_of_the_first_fits() -> None:
    guard = DriftGuard(0.005, 0.1)
    updated(guard, [1.0, 3.0])
    assert guard.average == 2.0
    updated(guard, [5.0])
    assert guard.average == 3.0
    assert guard.fits == 3


def test_a_rise_by_just_the_tolerance_is_allowed() -> None:
    # Twenty fits of 0; then 10, a twentieth of which is .5, and nothing above it.
    guard = DriftGuard(0.005, 0.5)
    updated(guard, [0.0] * 20 + [10.0])
    assert guard.average == 0.5
    assert guard.rate == 0.005


def test_it_can_be_switched_off() -> None:
    guard = DriftGuard(0.005, 0.0)
    updated(guard, [0.1] * 30 + [5.0] * 100)
    assert guard.rate == 0.005


def test_its_state_round_trips() -> None:
    guard, other = DriftGuard(0.005, 0.1), DriftGuard(0.005, 0.1)
    updated(guard, [0.2] * 50 + [0.4] * 10)
    other.load_state_dict(guard.state_dict())
    for each in (guard, other):
        with pytest.warns(UserWarning, match="halved"):
            updated(each, [0.4] * 10)
    assert vars(guard) == vars(other)


@pytest.mark.parametrize(
    ("own", "held_out"),
    [(0.01, 0.69), (0.35, 2.0)],  # a coin's loss is .693, and half of it .347
    ids=["held-out answers are known", "its own answers are not"],
)
def test_a_reward_that_is_not_overfit_is_not_told_of(own: float, held_out: float) -> None:
    watched = OverfitWarning()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(100):
            watched.update(own, held_out)


def test_an_overfit_reward_is_told_of_once_and_not_by_few_fits() -> None:
    watched = OverfitWarning()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(19):
            watched.update(0.01, 2.0)
    resumed = OverfitWarning()
    resumed.load_state_dict(watched.state_dict())
    with pytest.warns(UserWarning, match=r"loss 0.01\) and not the held-out ones \(2.00; 0.69 is"):
        resumed.update(0.01, 2.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(100):
            resumed.update(0.01, 2.0)
