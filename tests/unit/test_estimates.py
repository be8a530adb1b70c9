"""Statistics over seeds, against hand-worked numbers and those of rliable 1.2.0."""

import numpy as np
import pytest

from marl.reports.estimates import (
    Estimate,
    band,
    estimate,
    improvement,
    interpolated,
    iqm,
    shown,
    verdict,
)

X = [10.0, 20.0, 30.0, 1000.0, 25.0, 22.0, 18.0, 31.0]
Y = [12.0, 19.0, 15.0, 40.0, 11.0, 21.0]


def test_a_quarter_is_cut_at_each_end() -> None:
    # Sorted: 10 18 | 20 22 25 30 | 31 1000; the middle four have the mean 97 / 4.
    assert iqm(np.array(X)) == 24.25
    # Six values: a quarter is 1.5, so that one is cut: (12 + 15 + 19 + 21) / 4.
    assert iqm(np.array(Y)) == 16.75
    assert iqm(np.array([1.0, 2.0, 6.0])) == 3.0
    np.testing.assert_array_equal(iqm(np.array([[1.0, 3.0], [5.0, 5.0]]), axis=1), [2.0, 5.0])


def test_intervals_are_those_of_rliable() -> None:
    # library.get_interval_estimates of aggregate_iqm with 50,000 samples: [18, 271.5] and
    # [12.25, 29.5]. The ends are order statistics of few values, so that a sample more moves them.
    found = estimate(X)
    assert (found.low, found.high) == pytest.approx((18.0, 271.5), abs=1.0)
    other = estimate(Y)
    assert (other.low, other.high) == pytest.approx((12.25, 29.5), abs=0.6)
    assert estimate(X) == found


def test_two_seeds_have_no_interval() -> None:
    found = estimate([1.0, 3.0])
    assert found.value == 2.0
    assert np.isnan([found.low, found.high]).all()
    assert shown(found) == "2.00"
    assert shown(Estimate(2.0, 1.0, 300.0)) == "2.00 [1.00, 300]"


def test_probability_of_improvement_is_that_of_rliable() -> None:
    # Of the 48 pairs X is above in 33, by hand; 20,000 samples of rliable: [.375, .979].
    found = improvement([(X, Y)])
    assert found.value == 33 / 48
    assert (found.low, found.high) == pytest.approx((0.375, 0.979), abs=0.02)
    # Two tasks: .8 and .5, of rliable: .65 [.375, .9].
    second = ([0.1, 0.5, 0.3, 0.9, 0.4], [0.2, 0.6, 0.1, 0.3])
    found = improvement([(X[:5], Y[:4]), second])
    assert found.value == pytest.approx(0.65)
    assert (found.low, found.high) == pytest.approx((0.375, 0.9), abs=0.03)


def test_ties_are_half() -> None:
    assert improvement([([1.0], [1.0])]).value == 0.5
    assert improvement([([2.0, 1.0], [1.0])]).value == 0.75


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(3.1, 4.0, "above"), (2.9, 4.0, "not apart"), (0.5, 0.9, "below"), (0.5, 1.0, "not apart")],
)
def test_verdict_needs_intervals_apart(low: float, high: float, expected: str) -> None:
    # The other interval is [1, 3]; touching is not apart.
    ours, other = Estimate((low + high) / 2, low, high), Estimate(2.0, 1.0, 3.0)
    assert verdict(ours, other) == expected
    assert verdict(ours, Estimate(0.0)) == "?"


def test_curves_meet_on_the_steps_all_seeds_reached() -> None:
    steps = [np.array([10, 90]), np.array([20, 100])]
    grid, values = interpolated(steps, [np.array([0.0, 80.0]), np.array([5.0, 5.0])], 8)
    assert (grid[0], grid[-1]) == (20.0, 90.0)
    # The first seed's line rises by 1 a step from 0 at step 10.
    np.testing.assert_allclose(values[0], grid - 10.0)
    np.testing.assert_allclose(values[1], 5.0)


def test_bands() -> None:
    middle, low, high = band(np.full((3, 5), 2.0))
    np.testing.assert_array_equal([middle, low, high], 2.0)
    middle, low, high = band(np.array([[0.0], [1.0], [2.0]]))
    assert (middle[0], low[0], high[0]) == (1.0, 0.0, 2.0)
    assert np.isnan(band(np.ones((2, 5)))[1]).all()
