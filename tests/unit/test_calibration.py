"""Reliability and expected calibration error, worked by hand."""

import math
from pathlib import Path

import pytest
import torch
from PIL import Image

from marl.reports.plots import plot_reliability
from marl.rewards.scoring import Reliability, reliability


def test_the_error_by_hand() -> None:
    # Confidences .6 (right), .6 (wrong), .9 (right), .9 (right), and a tie that does not count.
    # Bin [.6, .7): 2 pairs, confidence .6, half right; bin [.9, 1]: 2 pairs, .9, all right.
    # ECE = 2/4 |.5 - .6| + 2/4 |1 - .9| = .1
    answers = torch.tensor([0.601, 0.399, 0.901, 0.099, 0.88])
    labels = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.5])
    table = reliability(answers, labels, bins=5)
    assert table.counts.tolist() == [0, 2, 0, 0, 2]
    assert table.agreement[[1, 4]].tolist() == [0.5, 1.0]
    assert table.confidence[[1, 4]].tolist() == pytest.approx([0.601, 0.901], abs=1e-6)
    assert table.error == pytest.approx(0.1, abs=1e-6)


def test_which_episode_comes_first_does_not_matter() -> None:
    source = torch.Generator().manual_seed(0)
    answers = torch.rand(200, generator=source, dtype=torch.float64)
    labels = torch.randint(2, (200,), generator=source).to(torch.float32)
    table = reliability(answers, labels)
    turned = reliability(1.0 - answers, 1.0 - labels)
    assert table.error == pytest.approx(turned.error)
    assert torch.equal(table.counts, turned.counts)


def test_calibrated_confidences_have_no_error() -> None:
    # Of ten pairs with P = .8, eight go to the first.
    answers = torch.full((10,), 0.8)
    labels = torch.tensor([1.0] * 8 + [0.0] * 2)
    assert reliability(answers, labels).error == pytest.approx(0.0, abs=1e-6)


def test_a_soft_label_counts_by_its_share() -> None:
    # P = .8 that the second wins, label .3: the second gets .7, so the gap is .1.
    table = reliability(torch.tensor([0.2]), torch.tensor([0.3]))
    assert table.error == pytest.approx(0.1, abs=1e-6)


def test_a_judge_that_prefers_neither_agrees_by_half() -> None:
    # P = .5 on both sides of the order: confidence .5, agreement .5.
    table = reliability(torch.tensor([0.5, 0.5, 0.5]), torch.tensor([1.0, 1.0, 0.0]))
    assert table.counts.tolist() == [3] + [0] * 9
    assert table.agreement[0] == 0.5
    assert table.error == 0.0


def test_bins_are_equally_wide() -> None:
    # Five bins of .1 from .5 on: .76 is in the third, whichever side it prefers.
    table = reliability(torch.tensor([0.76, 0.24]), torch.tensor([1.0, 1.0]), bins=5)
    assert table.counts.tolist() == [0, 0, 2, 0, 0]
    assert table.edges.tolist() == pytest.approx([0.5, 0.6, 0.7, 0.8, 0.9, 1.0])


def test_certainty_falls_into_the_last_bin() -> None:
    table = reliability(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0]))
    assert table.counts.tolist() == [0] * 9 + [2]
    assert table.error == pytest.approx(0.5)


def test_without_pairs_the_error_is_not_known() -> None:
    table = reliability(torch.tensor([0.9]), torch.tensor([0.5]))
    assert math.isnan(table.error)
    assert all(row["agreement"] is row["confidence"] is None for row in table.rows())


def test_the_rows_say_what_the_table_holds() -> None:
    row = reliability(torch.tensor([0.76]), torch.tensor([0.0]), bins=2).rows()[1]
    assert row == {
        "from": 0.75,
        "to": 1.0,
        "pairs": 1,
        "confidence": pytest.approx(0.76),
        "agreement": 0.0,
    }


@pytest.mark.usefixtures("drawn")
@pytest.mark.parametrize("pairs", [0, 50])
def test_the_diagram_is_drawn(pairs: int, tmp_path: Path) -> None:
    table: Reliability = reliability(torch.linspace(0.02, 0.98, pairs), torch.ones(pairs))
    with Image.open(plot_reliability(table, tmp_path / "calibration.png")) as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 300
    assert [path.name for path in tmp_path.iterdir()] == ["calibration.png"]
