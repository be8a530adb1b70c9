"""The figures of an audit, worked by hand."""

import math

import pytest

from marl.reports.statistics import (
    Share,
    agreement,
    calibration_error,
    confident_agreement,
    has_probabilities,
    mean,
    quantile,
    reliability,
)

NAN = math.nan
LABELS = [0.9, 0.8, 0.3, 0.55, 0.5, NAN, 0.7]
GAPS = [2.0, -1.0, -3.0, 1.0, 5.0, 5.0, 0.0]
"""Four are decided: right, wrong, right, right. Then a tie, no answer, and equal returns."""


def test_agreement_is_over_pairs_that_answer_and_return_decide() -> None:
    assert agreement(LABELS, GAPS) == Share(part=3, whole=4)
    assert agreement([0.5, NAN], [1.0, 1.0]) == Share(part=0, whole=0)
    assert agreement([1.0], [NAN]).whole == 0


def test_the_surer_half_is_rounded_up_and_includes_equals() -> None:
    # Distances from 0.5: 0.4 (right), 0.3 (wrong), 0.2 (right), 0.05 (right); the upper two.
    assert confident_agreement(LABELS, GAPS) == Share(part=1, whole=2)
    # Of three the upper two.
    assert confident_agreement([0.9, 0.2, 0.6], [1.0, -1.0, -1.0]) == Share(part=2, whole=2)
    # Hard labels are all equally sure, so that the half is the whole.
    assert confident_agreement([1.0, 0.0, 1.0], [1.0, 1.0, 1.0]) == Share(part=2, whole=3)
    assert confident_agreement([], []).whole == 0


def test_a_share_has_wilsons_interval() -> None:
    # n = 10, p = 0.8, z^2 = 3.8415: middle (0.8 + 0.19207) / 1.38415 = 0.71674; half
    # 1.95996 sqrt(0.016 + 0.0096037) / 1.38415 = 0.22658.
    assert Share(part=8, whole=10).interval == pytest.approx((0.49016, 0.94332), abs=1e-4)
    assert Share(part=0, whole=5).interval[0] == 0.0
    assert Share(part=5, whole=5).interval[1] == 1.0
    assert all(map(math.isnan, (Share(part=0, whole=0).value, *Share(part=0, whole=0).interval)))


def test_reliability_folds_both_sides_and_weighs_the_error_by_pairs() -> None:
    # Bins of width 0.1 from 0.5. Sure 0.95 and 0.05 -> 0.95: last bin, one of two right.
    # Sure 0.62: second bin, right.
    bins = reliability([0.95, 0.05, 0.62, 0.5], [1.0, 1.0, 1.0, 1.0])
    assert [(b.low, b.right) for b in bins] == [
        (pytest.approx(0.6), Share(part=1, whole=1)),
        (pytest.approx(0.9), Share(part=1, whole=2)),
    ]
    assert [b.confidence for b in bins] == pytest.approx([0.62, 0.95])
    # (1 * |1 - 0.62| + 2 * |0.5 - 0.95|) / 3
    assert calibration_error(bins) == pytest.approx((0.38 + 0.9) / 3)
    assert reliability([1.0], [1.0])[0].high == pytest.approx(1.0)
    assert math.isnan(calibration_error([]))


def test_small_things() -> None:
    # The 95 % point of 0 ... 20 is 19; of two values, 0.95 of the way.
    assert quantile(range(21), 0.95) == pytest.approx(19.0)
    assert quantile([1.0, 2.0], 0.95) == pytest.approx(1.95)
    assert math.isnan(quantile([], 0.5))
    assert mean([1.0, 4.0]) == 2.5
    assert math.isnan(mean([]))
    assert has_probabilities([1.0, 0.4])
    assert not has_probabilities([1.0, 0.5, 0.0, NAN])
